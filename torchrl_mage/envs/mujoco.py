"""Gymnasium's MuJoCo tasks, version 5: known rewards and terminations.

Locomotion tasks prepend the forward velocity ``(x' - x) / dt`` to the observation, 0 at reset, so
that the reward is a function of ``(s, a, s')``; ``observation[..., 1:]`` is gymnasium's own.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from torchrl_mage.envs.tasks import Task, register_task, reward_module, termination_module


class ForwardVelocity(gymnasium.Wrapper):
    """Prepends the forward velocity of the last step to the observation."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box)
        self.observation_space = Box(
            np.append(-np.inf, space.low), np.append(np.inf, space.high), dtype=space.dtype.type
        )

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Resets at rest: gymnasium's reset names no velocity."""
        observation, info = self.env.reset(**kwargs)
        return np.append(0.0, observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Steps, and prepends ``info["x_velocity"]``."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation = np.append(info["x_velocity"], observation)
        return observation, reward, terminated, truncated, info


def _squared(values: Tensor) -> Tensor:
    return values.square().sum(-1, keepdim=True)


def halfcheetah_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Forward velocity less control cost, ``[*B, 1]``."""
    return next_observation[..., :1] - 0.1 * _squared(action)


def swimmer_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Forward velocity less control cost, ``[*B, 1]``."""
    return next_observation[..., :1] - 1e-4 * _squared(action)


def hopper_terminated(next_observation: Tensor) -> Tensor:
    """Whether height, angle or another state variable has left its healthy range, ``[*B, 1]``.

    Gymnasium tests the raw velocities against +-100 and shows them clipped at +-10: that part of
    its test cannot be seen in the observation.
    """
    height, angle = next_observation[..., 1:2], next_observation[..., 2:3]
    in_range = (next_observation[..., 2:].abs() < 100).all(-1, keepdim=True)
    return ~((height > 0.7) & (angle.abs() < 0.2) & in_range)


def hopper_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Forward velocity, 1 while healthy, less control cost, ``[*B, 1]``."""
    healthy = (~hopper_terminated(next_observation)).to(action.dtype)
    return next_observation[..., :1] + healthy - 1e-3 * _squared(action)


def walker2d_terminated(next_observation: Tensor) -> Tensor:
    """Whether height or angle has left its healthy range, ``[*B, 1]``."""
    height, angle = next_observation[..., 1:2], next_observation[..., 2:3]
    return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))


def walker2d_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Forward velocity, 1 while healthy, less control cost, ``[*B, 1]``."""
    healthy = (~walker2d_terminated(next_observation)).to(action.dtype)
    return next_observation[..., :1] + healthy - 1e-3 * _squared(action)


def pusher_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Distances of arm and goal to the object after the step, and control cost, ``[*B, 1]``.

    The observation ends with the positions of fingertip, object and goal. Gymnasium's actions lie
    in [-2, 2], ours in [-1, 1].
    """
    fingertip, object_, goal = next_observation[..., -9:].split(3, -1)
    near = torch.linalg.vector_norm(object_ - fingertip, dim=-1, keepdim=True)
    distance = torch.linalg.vector_norm(object_ - goal, dim=-1, keepdim=True)
    return -distance - 0.5 * near - 0.1 * _squared(2 * action)


HALFCHEETAH = register_task(
    Task("HalfCheetah-v5", reward_module(halfcheetah_reward), wrap=ForwardVelocity)
)
HOPPER = register_task(
    Task(
        "Hopper-v5",
        reward_module(hopper_reward),
        termination_module(hopper_terminated),
        wrap=ForwardVelocity,
    )
)
WALKER2D = register_task(
    Task(
        "Walker2d-v5",
        reward_module(walker2d_reward),
        termination_module(walker2d_terminated),
        wrap=ForwardVelocity,
    )
)
SWIMMER = register_task(Task("Swimmer-v5", reward_module(swimmer_reward), wrap=ForwardVelocity))
PUSHER = register_task(Task("Pusher-v5", reward_module(pusher_reward)))
