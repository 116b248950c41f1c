"""MAGE (Model-based Action-Gradient-Estimator policy optimisation) as TorchRL primitives."""

from torchrl_mage.envs import ModelBasedEnv, OraclePendulum, Task, get_task, register_task
from torchrl_mage.modules import (
    GaussianEnsembleWorldModel,
    Normalizer,
    RewardModel,
    TerminationModel,
)
from torchrl_mage.objectives import GaussianEnsembleLoss, MAGELoss, NetworkSoftUpdate

__all__ = [
    "GaussianEnsembleLoss",
    "GaussianEnsembleWorldModel",
    "MAGELoss",
    "ModelBasedEnv",
    "NetworkSoftUpdate",
    "Normalizer",
    "OraclePendulum",
    "RewardModel",
    "Task",
    "TerminationModel",
    "get_task",
    "register_task",
]
