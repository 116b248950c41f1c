"""TorchRL's planners in a ModelBasedEnv of the true dynamics, acting in the real Pendulum."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrl.modules import CEMPlanner, MPPIPlanner, ValueOperator
from torchrl.objectives.value import TDLambdaEstimator

from torchrl_mage import ModelBasedEnv, OraclePendulum, get_task

SIZES = {"planning_horizon": 20, "optim_steps": 4, "num_candidates": 64, "top_k": 8}


class NoValue(nn.Module):
    """Behind the horizon: nothing."""

    def forward(self, observation):
        return 0 * observation[..., :1]


def cem(env):
    return CEMPlanner(env, **SIZES)


def mppi(env):
    value = ValueOperator(NoValue(), in_keys=["observation"])
    returns = TDLambdaEstimator(gamma=1.0, lmbda=1.0, value_network=value)
    return MPPIPlanner(env, returns, temperature=0.1, **SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("make_planner", [cem, mppi])
def test_planning_in_the_oracle_swings_the_pendulum_up(make_planner):
    torch.manual_seed(0)
    task = get_task("Pendulum-v1")
    planner = make_planner(ModelBasedEnv(OraclePendulum(), task.make_env()))
    real = task.make_env()
    real.set_seed(0)
    with torch.no_grad():
        returns = [real.rollout(200, planner)["next", "reward"].sum() for _ in range(5)]
    assert torch.stack(returns).mean() >= -300
