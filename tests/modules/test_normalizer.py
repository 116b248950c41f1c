"""Running statistics, and that every user of a normaliser sees their updates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import MLP
from torchrl.objectives import SoftUpdate

from torchrl_mage import MAGELoss, Normalizer
from torchrl_mage.modules import RunningStatistics


@given(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_statistics_do_not_depend_on_how_the_stream_is_cut(sizes):
    values = 5 + 2 * torch.randn(sum(sizes), 3, dtype=torch.float64)
    statistics = RunningStatistics(3, dtype=torch.float64)
    for part in values.split(sizes):
        statistics.update(part)
    assert statistics.count == len(values)
    if len(values):
        torch.testing.assert_close(statistics.mean, values.mean(0))
        torch.testing.assert_close(statistics.var, values.var(0, correction=0))
    restored = statistics.denormalize(statistics.normalize(values))
    torch.testing.assert_close(restored, values)


def test_updates_are_in_place():
    statistics = RunningStatistics(2)
    before = dict(statistics.named_buffers())
    pointers = {name: buffer.data_ptr() for name, buffer in before.items()}
    statistics.update(torch.randn(10, 2))
    assert {n: b.data_ptr() for n, b in statistics.named_buffers()} == pointers
    assert all(before[name] is buffer for name, buffer in statistics.named_buffers())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"expected vectors of 2 features, got shape \(4, 3\)"):
        RunningStatistics(2).update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="positive number of features, got 0"):
        RunningStatistics(0)


def test_every_use_in_a_loss_sees_an_update():
    """Statistics change after construction: acting, online, target and imagined states follow."""
    normalizer = Normalizer(2)
    actor = TensorDictModule(
        nn.Sequential(nn.Linear(2, 1), nn.Tanh()), ["normalized_observation"], ["action"]
    )
    critic = TensorDictModule(
        MLP(3, 1, num_cells=[4]), ["normalized_observation", "action"], ["state_action_value"]
    )
    world_model = TensorDictSequential(
        TensorDictModule(lambda s, a: s + a, ["observation", "action"], [("next", "observation")]),
        TensorDictModule(lambda a: 0 * a, ["action"], [("next", "reward")]),
        normalizer.on(("next", "observation"), ("next", "normalized_observation")),
    )
    loss = MAGELoss(actor, critic, world_model, bounds=(-1.0, 1.0), policy_noise=0.0)
    SoftUpdate(loss, tau=0.5)
    policy = TensorDictSequential(normalizer, actor)
    data = TensorDict(observation=torch.randn(6, 2), batch_size=[6])

    def everything():
        states = normalizer(data.clone())
        out = loss(states)
        return {
            "acting": policy(data.clone())["action"],
            "online value": out["pred_value"],
            "target value": out["target_value"],
            "action-gradient error": out["action_gradient_error"],
        }

    before = everything()
    normalizer.update(3 + 5 * torch.randn(100, 2))
    after = everything()
    for name in before:
        assert not torch.allclose(before[name], after[name], atol=1e-4), name

    # The target by hand, from the new statistics.
    mean, std = normalizer.statistics.mean, normalizer.statistics.std
    net = actor.module
    with torch.no_grad():
        action = net((data["observation"] - mean) / std)
        next_state = (data["observation"] + action - mean) / std
        values = [MLP(3, 1, num_cells=[4]) for _ in range(2)]
        for i, value in enumerate(values):
            loss.target_qvalue_network_params["module"][i].to_module(value)
        values = torch.stack([value(next_state, net(next_state)) for value in values])
    torch.testing.assert_close(after["target value"], 0.99 * values.min(0).values.squeeze(-1))
