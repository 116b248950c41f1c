from .checkpoint import (
    Checkpointer,
    CheckpointError,
    checkpoints,
    held_transitions,
    resuming,
)
from .collection import CollectorState, exploring, exploring_collector
from .divergence import DivergenceError, DivergenceGuard, check_finite
from .evaluation import (
    Evaluation,
    evaluate,
    record_episode,
    use_offscreen_rendering,
    write_film,
)
from .folder import RunInUseError, RunLock, open_run
from .hardware import RandomState, compiled, in_precision, set_up_torch
from .metrics import Metrics, RunningMeans, open_logger
from .optimisation import Minimizer, clipped_step
from .run import EXIT_INTERRUPTED, TRANSITION, Interrupted, Run
from .settings import SettingsError, check_settings

__all__ = [
    "EXIT_INTERRUPTED",
    "TRANSITION",
    "CheckpointError",
    "Checkpointer",
    "CollectorState",
    "DivergenceError",
    "DivergenceGuard",
    "Evaluation",
    "Interrupted",
    "Metrics",
    "Minimizer",
    "RandomState",
    "Run",
    "RunInUseError",
    "RunLock",
    "RunningMeans",
    "SettingsError",
    "check_finite",
    "check_settings",
    "checkpoints",
    "clipped_step",
    "compiled",
    "evaluate",
    "exploring",
    "exploring_collector",
    "held_transitions",
    "in_precision",
    "open_logger",
    "open_run",
    "record_episode",
    "resuming",
    "set_up_torch",
    "use_offscreen_rendering",
    "write_film",
]
