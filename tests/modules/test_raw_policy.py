"""RawPolicy: from a plain environment's observation to its own action, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule as Mod
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_mage.modules import RawPolicy, stochastic_actor


def test_actions_fill_the_box():
    """Two dimensions of boxes [-2, 4] and [10, 20], by hand at -1, 0 and 1."""
    policy = Mod(lambda state: state[..., :2], ["observation"], ["action"])
    raw = RawPolicy(policy, np.array([-2.0, 10.0]), np.array([4.0, 20.0]))
    states = torch.tensor([[-1.0, -1.0, 9.0], [0.0, 0.0, 9.0], [1.0, 1.0, 9.0]])
    assert raw(states).tolist() == [[-2, 10], [1, 15], [4, 20]]
    assert raw(states.reshape(3, 1, 3)).shape == (3, 1, 2)
    assert raw(states[0]).tolist() == [-2, 10]


def test_a_stochastic_policy_does_not_draw():
    policy = stochastic_actor(3, Bounded(-1, 1, (1,)), [8], in_key="observation")
    raw = RawPolicy(policy, np.array([-1.0]), np.array([1.0]))
    state = torch.ones(3)
    with set_exploration_type(ExplorationType.RANDOM):
        assert torch.equal(raw(state), raw(state))
    torch.testing.assert_close(raw(state), policy(observation=state)[0].tanh())


def test_a_policy_that_reads_more_is_refused():
    policy = Mod(lambda pixels: pixels, ["pixels"], ["action"])
    with pytest.raises(ValueError, match=r"the policy reads \['pixels'\]; a controller has"):
        RawPolicy(policy, np.zeros(1), np.ones(1))
