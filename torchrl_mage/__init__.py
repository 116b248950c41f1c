"""MAGE (Model-based Action-Gradient-Estimator policy optimisation) as TorchRL primitives."""

from torchrl_mage import diagnostics
from torchrl_mage.diagnostics import predict_open_loop
from torchrl_mage.envs import ModelBasedEnv, OraclePendulum, Task, get_task, register_task
from torchrl_mage.loading import LoadedRun, LoadError, load_run, ship_run
from torchrl_mage.modules import (
    CategoricalWorldModel,
    GaussianEnsembleWorldModel,
    Normalizer,
    RewardModel,
    RewardScaler,
    TerminationModel,
)
from torchrl_mage.objectives import (
    CategoricalEnsembleLoss,
    GaussianEnsembleLoss,
    MAGELoss,
    MAGESACLoss,
    NetworkSoftUpdate,
    TaylorTDLoss,
)

__version__ = "0.1.0"

__all__ = [
    "CategoricalEnsembleLoss",
    "CategoricalWorldModel",
    "GaussianEnsembleLoss",
    "GaussianEnsembleWorldModel",
    "LoadError",
    "LoadedRun",
    "MAGELoss",
    "MAGESACLoss",
    "ModelBasedEnv",
    "NetworkSoftUpdate",
    "Normalizer",
    "OraclePendulum",
    "RewardModel",
    "RewardScaler",
    "Task",
    "TaylorTDLoss",
    "TerminationModel",
    "diagnostics",
    "get_task",
    "load_run",
    "predict_open_loop",
    "register_task",
    "ship_run",
]
