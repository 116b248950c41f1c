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


# ---------------------------------------------------------------- dtypes and digits


def test_unsigned_integers_are_counted_as_numbers():
    """200 and 100: a byte holds neither their sum nor the squared deviations of 2,500."""
    statistics = RunningStatistics(1)
    statistics.update(torch.tensor([[200], [100]], dtype=torch.uint8))
    assert (statistics.mean.item(), statistics.std.item()) == (150.0, 50.0)
    normalized = statistics.normalize(torch.tensor([100], dtype=torch.uint8))
    assert normalized.tolist() == [-1.0]
    assert statistics.mean.dtype == torch.float32


@pytest.mark.parametrize("cut", [1, 10])
def test_small_steps_of_a_large_mean_add_up(cut):
    """1e6, then 1e6 + 20: of 1,000 + 3,000 rows the mean is 1e6 + 15, the variance 1 + 75."""
    signs = torch.tensor([[-1.0], [1.0]])
    values = torch.cat([1e6 + signs.repeat(500, 1), 1e6 + 20 + signs.repeat(1500, 1)])
    statistics = RunningStatistics(1)
    for part in values.split(cut):
        statistics.update(part)
    assert statistics.mean.item() == pytest.approx(1e6 + 15, abs=0.04)  # float32 steps by 0.06
    assert statistics.std.item() == pytest.approx(76**0.5, rel=1e-6)


def test_float64_values_near_a_large_mean_keep_their_digits():
    """1e7 + {0.25, 0.75}: float32 holds neither the values nor their mean of 1e7 + 0.5."""
    values = 1e7 + torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    statistics = RunningStatistics(1)
    statistics.update(values)
    assert statistics.std.item() == 0.25
    assert statistics.normalize(values).tolist() == [[-1.0], [1.0]]
    assert statistics.denormalize(statistics.normalize(values)).tolist() == values.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_dtype_rounds_away_survives_a_conversion(dtype):
    """Each row moves the mean by less than half of what float32 steps by at 1e6."""
    statistics = RunningStatistics(1)
    statistics.update(torch.full((1000, 1), 1e6))
    statistics.to(dtype)
    for _ in range(1000):
        statistics.update(torch.full((1, 1), 1e6 + 1))
    assert statistics.mean.dtype == statistics.std.dtype == dtype
    assert statistics.mean.item() == pytest.approx(1e6 + 0.5, abs=1e-6)  # in float32 exactly
    assert statistics.std.item() == pytest.approx(0.5, rel=1e-6)


def test_a_saved_mean_goes_on_where_it_was():
    statistics, other = RunningStatistics(1), RunningStatistics(1)
    statistics.update(torch.tensor([[1e6], [1e6], [1e6 + 1]]))
    other.load_state_dict(statistics.state_dict())
    for each in (statistics, other):
        each.update(torch.tensor([[1e6 + 3]]))
    assert other.mean.item() == statistics.mean.item() == 1e6 + 1
    assert other.std.item() == pytest.approx(1.5**0.5, rel=1e-6)  # of 0, 0, 1 and 3


def test_a_missing_observation_is_named():
    normalizer = Normalizer(2, in_key=("agent", "state"))
    with pytest.raises(
        ValueError, match=r"the normalizer reads \('agent', 'state'\).*\['observation'\]"
    ):
        normalizer(TensorDict(observation=torch.zeros(2)))
