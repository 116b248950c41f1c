from . import diagnostics, envs, functional, loading, modules, objectives, trainers
from .diagnostics import predict_open_loop
from .envs import ModelBasedEnv, OraclePendulum, Task, get_task, register_task
from .loading import LoadedRun, LoadError, load_run, ship_run
from .modules import (
    CategoricalWorldModel,
    GaussianEnsembleWorldModel,
    Normalizer,
    RewardModel,
    RewardScaler,
    TerminationModel,
)
from .objectives import (
    BoundedTD0Estimator,
    CategoricalEnsembleLoss,
    GaussianEnsembleLoss,
    MAGELoss,
    MAGESACLoss,
    NetworkSoftUpdate,
    TaylorTDLoss,
)

__version__: str

__all__ = [
    "BoundedTD0Estimator",
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
    "envs",
    "functional",
    "get_task",
    "load_run",
    "loading",
    "modules",
    "objectives",
    "predict_open_loop",
    "register_task",
    "ship_run",
    "trainers",
]
