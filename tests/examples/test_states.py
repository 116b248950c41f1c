"""The states of an environment step's updates."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import EXAMPLES
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_mage import ModelBasedEnv, OraclePendulum
from torchrl_mage.envs import get_task
from torchrl_mage.trainers import Run, exploring

LENGTHS = {
    "title": "states",
    "total_steps": 10,
    "log_interval": 5,
    "eval_interval": 5,
    "eval_episodes": 1,
    "checkpoint_interval": 5,
    "seed": 0,
    "discount": 0.99,
}
START, COUNT = torch.tensor([1.0, 0.0, 0.0]), 4 * 25


@pytest.fixture
def states(tmp_path, monkeypatch):
    """Of a buffer of the upright pendulum at rest, where the policy without noise stays."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from states import TrainingStates

    def made(steps):
        env = get_task("Pendulum-v1").make_env()
        policy = TensorDictModule(lambda s: 0 * s[..., :1], ["observation"], ["action"])
        buffer = ReplayBuffer(storage=LazyTensorStorage(50), batch_size=COUNT)
        buffer.extend(TensorDict(observation=START.expand(50, 3), batch_size=[50]))
        policies = {"updates_per_step": 4, "batch_size": 25, "imagination_steps": steps}
        return TrainingStates(
            OmegaConf.create({"policy": policies}),
            Run(tmp_path, **LENGTHS),
            buffer,
            ModelBasedEnv(OraclePendulum(), env),
            exploring(policy, env, noise=0.5),
        )

    yield made
    sys.modules.pop("states", None)


def moved(states):
    return (states["observation"] != START).any(-1)


def test_half_of_what_is_imagined_is_without_exploration(states):
    """After one step from rest a state has moved where there was noise: a quarter of the pool."""
    found = states(1)
    found.sample()
    pool = found.state_dict()["observation"]
    assert (pool != START).any(-1).float().mean() == 0.25


def test_a_pool_lasts_until_it_is_renewed(states):
    found = states(3)
    torch.manual_seed(0)
    sample = found.sample()
    assert sample.shape == (COUNT,)
    assert moved(sample).any()
    pool = found.state_dict()["observation"]
    found.sample()
    assert found.state_dict()["observation"] is pool
    found.renew()
    found.sample()
    assert not torch.equal(found.state_dict()["observation"], pool)


def test_without_imagined_steps_the_states_are_the_buffers(states):
    found = states(0)
    assert not moved(found.sample()).any()
    assert found.state_dict() == {}
