"""What every script needs and no paper describes."""

from torchrl_mage.trainers.checkpoint import (
    Checkpointer,
    CheckpointError,
    checkpoints,
    held_transitions,
    resuming,
)
from torchrl_mage.trainers.collection import CollectorState, exploring, exploring_collector
from torchrl_mage.trainers.divergence import DivergenceError, DivergenceGuard, check_finite
from torchrl_mage.trainers.evaluation import (
    Evaluation,
    evaluate,
    record_episode,
    use_offscreen_rendering,
    write_film,
)
from torchrl_mage.trainers.folder import RunInUseError, RunLock, chosen_folder, open_run
from torchrl_mage.trainers.hardware import RandomState, compiled, in_precision, set_up_torch
from torchrl_mage.trainers.metrics import Metrics, RunningMeans, open_logger
from torchrl_mage.trainers.optimisation import Minimizer, clipped_step
from torchrl_mage.trainers.run import EXIT_INTERRUPTED, TRANSITION, Interrupted, Run
from torchrl_mage.trainers.settings import SettingsError, check_settings

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
    "chosen_folder",
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
