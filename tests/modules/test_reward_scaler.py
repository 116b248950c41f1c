"""Rewards in units of the value range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential

from torchrl_mage import MAGELoss, OraclePendulum, RewardScaler
from torchrl_mage.envs import get_task
from torchrl_mage.modules import critic, deterministic_actor

REWARDS = st.lists(st.integers(-1000, 1000).map(lambda x: x / 8), min_size=1, max_size=12)


def scaled(scaler, rewards):
    reward = torch.tensor(rewards, dtype=torch.float64)[:, None]
    td = TensorDict({("next", "reward"): reward}, batch_size=[len(rewards)])
    return scaler(td)["next", "reward"].squeeze(-1)


@given(REWARDS, st.floats(0.0, 0.99), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_return_of_rewards_seen_leaves_the_range(rewards, gamma, centered):
    """The best and the worst for ever: ``max |r - c| / V / (1 - gamma)`` is 1."""
    scaler = RewardScaler(gamma, centered=centered, dtype=torch.float64)
    scaler.update(torch.tensor(rewards, dtype=torch.float64))
    endless = scaled(scaler, rewards).abs() / (1 - gamma)
    assert endless.max() <= 1 + 1e-9
    if any(reward != rewards[0] for reward in rewards) or (rewards[0] and not centered):
        assert endless.max() > 1 - 1e-9


@given(REWARDS, REWARDS)
@settings(max_examples=40, deadline=None)
def test_one_by_one_or_all_at_once(first, second):
    pieces, whole = (RewardScaler(0.9, centered=True, dtype=torch.float64) for _ in range(2))
    for reward in (*first, *second):
        pieces.update(torch.tensor([[reward]], dtype=torch.float64))
    whole.update(torch.tensor([*first, *second], dtype=torch.float64))
    assert whole.center.item() == pytest.approx(sum([*first, *second]) / len([*first, *second]))
    torch.testing.assert_close(pieces.center, whole.center, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pieces.value_range, whole.value_range, rtol=1e-9, atol=1e-7)


def test_nothing_seen_or_nothing_paid_leaves_the_reward_as_it_is():
    scaler = RewardScaler(0.0)
    scaler.update(torch.empty(0))
    assert scaled(scaler, [3.0]).tolist() == [3.0]
    scaler.update(torch.zeros(4))
    assert scaled(scaler, [3.0]).tolist() == [3.0]


def test_the_target_of_a_loss_is_the_scaled_value():
    """Critics of zero: ``y = (r - c) / V``, and what changes the statistics is seen at once."""
    env = get_task("Pendulum-v1").make_env()
    scaler = RewardScaler(0.99, centered=True)
    actor = deterministic_actor(3, env.action_spec, [8], in_key="observation")
    critics = [critic(3, 1, [8], zero_head=True, in_key="observation") for _ in range(2)]
    loss = MAGELoss(
        actor,
        critics,
        TensorDictSequential(OraclePendulum(), scaler),
        bounds=(-1.0, 1.0),
        delay_actor=False,
        delay_qvalue=False,
    )
    loss.make_value_estimator(gamma=0.99)
    observation = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    states = TensorDict(observation=observation, batch_size=[2])
    before = loss.value_loss(states)[1]["target_value"]
    scaler.update(torch.tensor([-10.0, 0.0]))
    after = loss.value_loss(states)[1]["target_value"]
    assert scaler.center == -5
    assert scaler.value_range == pytest.approx(500)
    torch.testing.assert_close(after, (before + 5) / 500)


@pytest.mark.parametrize("gamma", [1.0, -0.1, float("nan")])
def test_an_impossible_discount_is_named(gamma):
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\), got"):
        RewardScaler(gamma)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_critic_that_starts_at_zero(layer_norm):
    """Every value is 0, the layers below are drawn, and one step of training moves all of them."""
    q = critic(3, 1, [16, 16], layer_norm=layer_norm, zero_head=True, in_key="observation")
    td = TensorDict(observation=torch.randn(5, 3), action=torch.randn(5, 1), batch_size=[5])
    assert (q(td.clone())["state_action_value"] == 0).all()
    norms = [m for m in q.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * layer_norm
    optimizer = torch.optim.SGD(q.parameters(), lr=0.1)
    for _ in range(2):
        loss = (q(td.clone())["state_action_value"] - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in q.parameters())
