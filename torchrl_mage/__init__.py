"""MAGE (Model-based Action-Gradient-Estimator policy optimisation) as TorchRL primitives."""

import gymnasium
import lazy_loader

__version__ = "0.1.0"
# Nothing is imported before it is used: PyTorch takes seconds. The stub says what there is.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

gymnasium.register(
    "torchrl_mage/ContinuousCartPole-v1",
    "torchrl_mage.envs.cartpole:ContinuousCartPoleEnv",
    max_episode_steps=500,
)
