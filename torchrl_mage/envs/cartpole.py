"""A cart-pole with a continuous force."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box
from torch import Tensor

from torchrl_mage.envs.tasks import Task, register_task, reward_module, termination_module

NAME = "torchrl_mage/ContinuousCartPole-v1"
MAX_POSITION = 2.4
MAX_ANGLE = 12 * 2 * np.pi / 360


class ContinuousCartPoleEnv(CartPoleEnv):
    """Gymnasium's cart-pole, pushed by a force of ``10 a`` newton, ``a`` in [-1, 1].

    Reward 1 for every step, the falling one included; ends when the cart is farther than 2.4 from
    the centre or the pole more than 12 degrees from upright.

    Example:
        >>> env = ContinuousCartPoleEnv()
        >>> _ = env.reset(seed=0)
        >>> _, reward, terminated, truncated, _ = env.step(np.array([0.5]))
        >>> reward, terminated, truncated
        (1.0, False, False)
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One Euler step of the classic dynamics (Florian, 2007)."""
        assert self.state is not None, "reset the environment before its first step"
        x, x_dot, theta, theta_dot = self.state
        force = self.force_mag * float(np.clip(action[0], -1.0, 1.0))
        cos, sin = np.cos(theta), np.sin(theta)
        push = (force + self.polemass_length * theta_dot**2 * sin) / self.total_mass
        theta_acc = (self.gravity * sin - cos * push) / (
            self.length * (4.0 / 3.0 - self.masspole * cos**2 / self.total_mass)
        )
        x_acc = push - self.polemass_length * theta_acc * cos / self.total_mass
        self.state = np.array(
            [
                x + self.tau * x_dot,
                x_dot + self.tau * x_acc,
                theta + self.tau * theta_dot,
                theta_dot + self.tau * theta_acc,
            ]
        )
        terminated = bool(abs(self.state[0]) > MAX_POSITION or abs(self.state[2]) > MAX_ANGLE)
        if self.render_mode == "human":
            self.render()
        return self.state.astype(np.float32), 1.0, terminated, False, {}


def cartpole_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """1 for every step, ``[*B, 1]``."""
    return torch.ones_like(next_observation[..., :1])


def cartpole_terminated(next_observation: Tensor) -> Tensor:
    """Whether the cart has left the track or the pole has fallen, ``[*B, 1]``."""
    position, _, angle, _ = next_observation.split(1, -1)
    return (position.abs() > MAX_POSITION) | (angle.abs() > MAX_ANGLE)


def cartpole_pose(env: gymnasium.Env, observation: np.ndarray) -> None:
    """Puts the environment into the observed state."""
    env.unwrapped.state = np.asarray(observation, float)  # type: ignore[attr-defined]


CARTPOLE = register_task(
    Task(
        NAME,
        reward_module(cartpole_reward),
        termination_module(cartpole_terminated),
        pose=cartpole_pose,
    )
)
