"""Collects transitions one by one: at random first, then with the noisy policy."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.modules import AdditiveGaussianModule


def exploring_collector(
    env: EnvBase,
    policy: TensorDictModuleBase,
    *,
    noise: float,
    random_steps: int,
    total_steps: int,
    seed: int,
) -> Collector:
    """TorchRL's collector of one transition a batch.

    Args:
        env: a single environment; seeded here.
        policy: writes ``action``; its parameters may be trained in place meanwhile.
        noise: standard deviation of the Gaussian noise on each action, which stays in its box.
        random_steps: steps with uniform random actions, at the start.
        total_steps: after which the collector ends.
        seed: of the environment.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> from torchrl.modules import Actor
        >>> env = GymEnv("Pendulum-v1")
        >>> policy = Actor(lambda x: 0 * x[..., :1], spec=env.action_spec)
        >>> collector = exploring_collector(
        ...     env, policy, noise=0.1, random_steps=2, total_steps=5, seed=0
        ... )
        >>> [batch["action"].shape for batch in collector]
        [torch.Size([1, 1]), torch.Size([1, 1]), torch.Size([1, 1]), torch.Size([1, 1]), ...]
        >>> collector.shutdown()
    """
    explorer = AdditiveGaussianModule(
        env.action_spec, sigma_init=float(noise), sigma_end=float(noise), device=env.device
    )
    env.set_seed(seed)
    return Collector(
        env,
        TensorDictSequential(policy, explorer),
        frames_per_batch=1,
        total_frames=total_steps,
        auto_register_policy_transforms=False,
        init_random_frames=random_steps,
    )
