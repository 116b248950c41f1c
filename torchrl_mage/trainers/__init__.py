"""What every script needs and no paper describes."""

from torchrl_mage.trainers.checkpoint import Checkpointer, CheckpointError, checkpoints
from torchrl_mage.trainers.collection import exploring_collector
from torchrl_mage.trainers.collector_state import CollectorState
from torchrl_mage.trainers.compilation import compiled
from torchrl_mage.trainers.counters import Counters
from torchrl_mage.trainers.divergence import DivergenceError, DivergenceGuard
from torchrl_mage.trainers.env_state import EnvState
from torchrl_mage.trainers.evaluation import Evaluation, evaluate
from torchrl_mage.trainers.guards import check_finite
from torchrl_mage.trainers.hardware import set_up_torch
from torchrl_mage.trainers.interruption import EXIT_INTERRUPTED, Interruption
from torchrl_mage.trainers.logger import open_logger
from torchrl_mage.trainers.loop import TRANSITION, TrainingLoop
from torchrl_mage.trainers.metrics import RunningMeans
from torchrl_mage.trainers.minibatches import member_minibatches
from torchrl_mage.trainers.optimization import clipped_step, radam, resetter
from torchrl_mage.trainers.random_state import RandomState
from torchrl_mage.trainers.resume import chosen_folder, open_run
from torchrl_mage.trainers.run_folder import RunFolder
from torchrl_mage.trainers.run_lock import RunInUseError, RunLock
from torchrl_mage.trainers.settings import SettingsError, check_settings
from torchrl_mage.trainers.video import record_episode, use_offscreen_rendering

__all__ = [
    "EXIT_INTERRUPTED",
    "TRANSITION",
    "CheckpointError",
    "Checkpointer",
    "CollectorState",
    "Counters",
    "DivergenceError",
    "DivergenceGuard",
    "EnvState",
    "Evaluation",
    "Interruption",
    "RandomState",
    "RunFolder",
    "RunInUseError",
    "RunLock",
    "RunningMeans",
    "SettingsError",
    "TrainingLoop",
    "check_finite",
    "check_settings",
    "checkpoints",
    "chosen_folder",
    "clipped_step",
    "compiled",
    "evaluate",
    "exploring_collector",
    "member_minibatches",
    "open_logger",
    "open_run",
    "radam",
    "record_episode",
    "resetter",
    "set_up_torch",
    "use_offscreen_rendering",
]
