"""A grid of cells in the wind: discrete states, continuous actions, everything known exactly.

A boat lies in one of ``COLUMNS x ROWS`` cells. Along each axis it goes one cell back, stays or goes
one on, with the probabilities ``softmax(-5 u, 3, 5 u)`` of its thrust and the wind, ``u = a + w``;
what would leave the grid stays. The wind along the columns depends on the row, that along the rows
on the column. It is paid the worth of the cell it comes to, less the thrust's cost. Nothing ends.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

COLUMNS, ROWS = 4, 3
CATEGORIES = (COLUMNS, ROWS)
OBS, ACTION, GAMMA = COLUMNS + ROWS, 2, 0.9
WIND = (
    torch.tensor([0.3, -0.2, -0.5]),  # along the columns, by row
    torch.tensor([-0.4, 0.1, 0.4, 0.0]),  # along the rows, by column
)
WORTH = torch.tensor(  # by column and row
    [[0.0, 0.1, 0.0], [0.1, 0.3, 0.1], [0.3, 1.0, 0.3], [0.1, 0.3, 0.1]]
)
COST = 0.1


def states(dtype: torch.dtype = torch.float32) -> Tensor:
    """All cells ``[S, D]``, row after row within each column."""
    columns, rows = torch.eye(COLUMNS, dtype=dtype), torch.eye(ROWS, dtype=dtype)
    return torch.cat([columns.repeat_interleave(ROWS, 0), rows.repeat(COLUMNS, 1)], -1)


def moved(here: Tensor, u: Tensor) -> Tensor:
    """Probabilities ``[*B, K]`` of the next place along an axis of ``K``."""
    back, stay, on = (
        torch.stack([-5 * u, torch.full_like(u, 3), 5 * u], -1).softmax(-1).split(1, -1)
    )
    size = here.shape[-1]
    step = torch.diag(torch.ones(size - 1, dtype=here.dtype), 1)
    further, nearer = step.clone(), step.T.clone()
    further[-1, -1] = nearer[0, 0] = 1  # the edges
    return stay * here + on * (here @ further) + back * (here @ nearer)


def transition(observation: Tensor, action: Tensor) -> Tensor:
    """Probability of each cell, ``[*B, S]``."""
    column, row = observation.split(CATEGORIES, -1)
    column_wind, row_wind = row @ WIND[0].to(row), column @ WIND[1].to(row)
    next_column = moved(column, action[..., 0] + column_wind)
    next_row = moved(row, action[..., 1] + row_wind)
    return (next_column[..., :, None] * next_row[..., None, :]).flatten(-2)


def pay(action: Tensor, following: Tensor) -> Tensor:
    """The reward ``[*B, 1]``, linear in each variable of the next observation."""
    column, row = following.split(CATEGORIES, -1)
    worth = ((column @ WORTH.to(column)) * row).sum(-1, keepdim=True)
    return worth - COST * action.square().sum(-1, keepdim=True)


reward = TensorDictModule(pay, ["action", ("next", "observation")], [("next", "reward")])


def values(policy: Tensor) -> Tensor:
    """The discounted return from each cell ``[S]`` of a policy's actions there, ``[S, A]``."""
    policy, here = policy.double(), states(torch.float64)
    p = transition(here, policy)
    paid = p @ WORTH.double().flatten() - COST * policy.square().sum(-1)
    return torch.linalg.solve(torch.eye(len(p), dtype=p.dtype) - GAMMA * p, paid)


def best_values(steps: int = 61) -> Tensor:
    """The optimal return from each cell ``[S]``: policy iteration over a grid of actions."""
    axis = torch.linspace(-1, 1, steps, dtype=torch.float64)
    action = torch.cartesian_prod(axis, axis)
    here = states(torch.float64)[:, None].expand(-1, len(action), -1)
    p = transition(here, action.expand(len(here), -1, -1))
    paid = p @ WORTH.double().flatten() - COST * action.square().sum(-1)
    policy = torch.zeros(len(here), ACTION, dtype=torch.float64)
    while True:
        better = action[(paid + GAMMA * p @ values(policy)).argmax(-1)]
        if torch.equal(better, policy):
            return values(policy)
        policy = better


class WindyGrid(gymnasium.Env):
    """The grid as an environment; starts in a cell drawn uniformly."""

    observation_space = gymnasium.spaces.Box(0, 1, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = states()[self.np_random.integers(COLUMNS * ROWS)]
        return self.state.numpy(), {}

    def step(self, action):
        action = torch.as_tensor(action)
        p = transition(self.state.double(), action.double()).numpy()
        self.state = states()[self.np_random.choice(len(p), p=p / p.sum())]
        return self.state.numpy(), pay(action, self.state).item(), False, False, {}
