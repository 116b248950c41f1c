"""Tasks with known rewards, and environments made of world models."""

from torchrl_mage.envs.cartpole import ContinuousCartPoleEnv
from torchrl_mage.envs.checked import CheckedEnv, EnvironmentFault
from torchrl_mage.envs.model_based import ModelBasedEnv
from torchrl_mage.envs.mujoco import ForwardVelocity
from torchrl_mage.envs.pendulum import OraclePendulum
from torchrl_mage.envs.recorded import RecordedEnv, ReplayError
from torchrl_mage.envs.tasks import (
    Task,
    find_task,
    get_task,
    register_task,
    reward_module,
    termination_module,
)
from torchrl_mage.envs.transitions import DataError, read_transitions

__all__ = [
    "CheckedEnv",
    "ContinuousCartPoleEnv",
    "DataError",
    "EnvironmentFault",
    "ForwardVelocity",
    "ModelBasedEnv",
    "OraclePendulum",
    "RecordedEnv",
    "ReplayError",
    "Task",
    "find_task",
    "get_task",
    "read_transitions",
    "register_task",
    "reward_module",
    "termination_module",
]
