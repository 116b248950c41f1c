"""Pendulum-v1: reward and dynamics of the gymnasium environment, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from tensordict.nn import TensorDictSequential
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_mage.envs.tasks import Task, register_task, reward_module
from torchrl_mage.modules.reading import ReadingModule

MAX_SPEED = 8.0
MAX_TORQUE = 2.0
DT = 0.05
GRAVITY = 10.0


def _torque(action: Tensor) -> Tensor:
    return MAX_TORQUE * action.clamp(-1, 1)


def pendulum_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The negative cost of angle, speed and torque, ``[*B, 1]``: of the state before the step."""
    cos, sin, speed = observation.unbind(-1)
    angle = torch.atan2(sin, cos)
    torque = _torque(action).squeeze(-1)
    cost = angle.square() + 0.1 * speed.square() + 0.001 * torque.square()
    return -cost.unsqueeze(-1)


def pendulum_dynamics(observation: Tensor, action: Tensor) -> Tensor:
    """The next observation ``(cos, sin, speed)``, ``[*B, 3]``."""
    cos, sin, speed = observation.unbind(-1)
    angle = torch.atan2(sin, cos)
    torque = _torque(action).squeeze(-1)
    # Mass and length are 1.
    speed = (speed + (1.5 * GRAVITY * sin + 3.0 * torque) * DT).clamp(-MAX_SPEED, MAX_SPEED)
    angle = angle + speed * DT
    return torch.stack([angle.cos(), angle.sin(), speed], -1)


class OraclePendulum(TensorDictSequential):
    """The true dynamics and reward of ``Pendulum-v1`` as a world model (appendix B.1, D.2).

    Reads ``observation`` ``[*B, 3]`` and ``action`` ``[*B, 1]``, writes ``("next", "observation")``
    and ``("next", "reward")``; deterministic, differentiable, any floating dtype.

    Args:
        in_keys: keys of the observation and the action.
        out_keys: keys of the next observation and the reward.

    Example:
        >>> from tensordict import TensorDict
        >>> upright = TensorDict(observation=torch.tensor([1.0, 0.0, 0.0]), action=torch.zeros(1))
        >>> OraclePendulum()(upright)["next", "observation"]
        tensor([1., 0., 0.])
    """

    def __init__(
        self,
        *,
        in_keys: Sequence[NestedKey] = ("observation", "action"),
        out_keys: Sequence[NestedKey] = (("next", "observation"), ("next", "reward")),
    ) -> None:
        following, reward = out_keys
        super().__init__(
            ReadingModule(pendulum_dynamics, in_keys, [following], name="the oracle pendulum"),
            reward_module(pendulum_reward, in_keys=[*in_keys, following], out_keys=[reward]),
        )


def pendulum_pose(env: gymnasium.Env, observation: np.ndarray) -> None:
    """Puts the environment at the observed angle and speed."""
    cos, sin, speed = observation
    env.unwrapped.state = np.array([np.arctan2(sin, cos), speed])  # type: ignore[attr-defined]


PENDULUM = register_task(Task("Pendulum-v1", reward_module(pendulum_reward), pose=pendulum_pose))
