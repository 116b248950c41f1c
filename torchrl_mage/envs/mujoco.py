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


def ant_terminated(next_observation: Tensor) -> Tensor:
    """Whether the height has left its healthy range or a number is not finite, ``[*B, 1]``."""
    height = next_observation[..., 1:2]
    finite = next_observation.isfinite().all(-1, keepdim=True)
    return ~((height >= 0.2) & (height <= 1.0) & finite)


def ant_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Forward velocity, 1 while healthy, less control cost, ``[*B, 1]``.

    The task makes gymnasium's Ant-v5 with ``include_cfrc_ext_in_observation=False``, for the 27
    observations of version 4, and with ``contact_cost_weight=0``: version 5 would charge for
    contact forces, which are then not observed. Version 4 charged nothing for them either, but
    paid the 1 on the falling step too.
    """
    healthy = (~ant_terminated(next_observation)).to(action.dtype)
    return next_observation[..., :1] + healthy - 0.5 * _squared(action)


def _tip(observation: Tensor) -> tuple[Tensor, Tensor]:
    """Where the second pole ends, across and up, each ``[*B, 1]``: both poles are 0.6 m long.

    The observation has the sines and cosines of the first pole's angle to the vertical and of the
    second's to the first.
    """
    x, sin, sin_2, cos, cos_2 = observation[..., :5].split(1, -1)
    across = x + 0.6 * (sin + sin * cos_2 + cos * sin_2)
    return across, 0.6 * (cos + cos * cos_2 - sin * sin_2)


def double_pendulum_terminated(next_observation: Tensor) -> Tensor:
    """Whether the tip is at most 1 m high, ``[*B, 1]``; see :func:`double_pendulum_reward`."""
    _, height = _tip(next_observation)
    return height <= 1.0


def double_pendulum_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """10 while up, less the tip's distance from (0, 2) and the poles' speeds, ``[*B, 1]``.

    The formula is gymnasium's; what it pays differs where the observation does not show it:

    - It reads the tip's position where MuJoCo last computed it, in the last stage of the
      integrator's last step: up to 2e-4 of reward from the position of the state that is observed,
      4e-6 typically under random actions; up to 0.03 in a step in which the cart hits the end of
      its rail, and the 10 where the tip is that near to 1 m.
    - It charges the poles' raw speeds, 1e-3 and 5e-3 times their squares, and shows them clipped at
      +-10 rad/s.
    """
    across, height = _tip(next_observation)
    speed, speed_2 = next_observation[..., 6:7], next_observation[..., 7:8]
    distance = 0.01 * across.square() + (height - 2).square()
    cost = distance + 1e-3 * speed.square() + 5e-3 * speed_2.square()
    return 10 * (height > 1.0).to(action.dtype) - cost


def pusher_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Distances of arm and goal to the object after the step, and control cost, ``[*B, 1]``.

    The observation ends with the positions of fingertip, object and goal. Gymnasium's actions lie
    in [-2, 2], ours in [-1, 1].
    """
    fingertip, object_, goal = next_observation[..., -9:].split(3, -1)
    near = torch.linalg.vector_norm(object_ - fingertip, dim=-1, keepdim=True)
    distance = torch.linalg.vector_norm(object_ - goal, dim=-1, keepdim=True)
    return -distance - 0.5 * near - 0.1 * _squared(2 * action)


def locomotion_pose(env: gymnasium.Env, observation: np.ndarray) -> None:
    """Puts the environment into the observed state, at the place on the ground where it is.

    The observation has the forward velocity, all positions but those along the ground, and all
    velocities.
    """
    base: Any = env.unwrapped
    hidden = base.model.nq + base.model.nv - (len(observation) - 1)
    shown = base.model.nq - hidden
    state = np.asarray(observation[1:], float)
    positions = np.append(base.data.qpos[:hidden], state[:shown])
    base.set_state(positions, state[shown:])


FOLLOWED = {"camera_name": "track"}  # else what runs well runs out of the picture

HALFCHEETAH = register_task(
    Task(
        "HalfCheetah-v5",
        reward_module(halfcheetah_reward),
        wrap=ForwardVelocity,
        kwargs=FOLLOWED,
        pose=locomotion_pose,
    )
)
HOPPER = register_task(
    Task(
        "Hopper-v5",
        reward_module(hopper_reward),
        termination_module(hopper_terminated),
        wrap=ForwardVelocity,
        kwargs=FOLLOWED,
        pose=locomotion_pose,
    )
)
WALKER2D = register_task(
    Task(
        "Walker2d-v5",
        reward_module(walker2d_reward),
        termination_module(walker2d_terminated),
        wrap=ForwardVelocity,
        kwargs=FOLLOWED,
        pose=locomotion_pose,
    )
)
SWIMMER = register_task(
    Task(
        "Swimmer-v5",
        reward_module(swimmer_reward),
        wrap=ForwardVelocity,
        kwargs=FOLLOWED,
        pose=locomotion_pose,
    )
)
PUSHER = register_task(Task("Pusher-v5", reward_module(pusher_reward)))
ANT = register_task(
    Task(
        "Ant-v5",
        reward_module(ant_reward),
        termination_module(ant_terminated),
        wrap=ForwardVelocity,
        kwargs={
            **FOLLOWED,
            "include_cfrc_ext_in_observation": False,
            "contact_cost_weight": 0.0,
        },
        pose=locomotion_pose,
    )
)
DOUBLE_PENDULUM = register_task(
    Task(
        "InvertedDoublePendulum-v5",
        reward_module(double_pendulum_reward),
        termination_module(double_pendulum_terminated),
    )
)
