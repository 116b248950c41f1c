"""What every script needs and no paper describes."""

from torchrl_mage.trainers.compilation import compiled
from torchrl_mage.trainers.evaluation import Evaluation, evaluate
from torchrl_mage.trainers.guards import check_finite
from torchrl_mage.trainers.metrics import RunningMeans
from torchrl_mage.trainers.minibatches import member_minibatches
from torchrl_mage.trainers.optimization import clipped_step
from torchrl_mage.trainers.run_folder import RunFolder
from torchrl_mage.trainers.video import record_episode, use_offscreen_rendering

__all__ = [
    "Evaluation",
    "RunFolder",
    "RunningMeans",
    "check_finite",
    "clipped_step",
    "compiled",
    "evaluate",
    "member_minibatches",
    "record_episode",
    "use_offscreen_rendering",
]
