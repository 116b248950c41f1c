"""Targets in the range of what is possible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives.test_contract import Case, every_agent_loss
from objectives.test_horizon import naive_target
from objectives.test_mage import GAMMA, Problem, reward_fn
from torchrl.objectives.value import GAE, TD0Estimator

from torchrl_mage import BoundedTD0Estimator, RewardScaler

TIGHT = (0.8, 0.92)  # which binds on both sides in Problem


def alive(following):
    return (following[..., :1] <= 0.5).double()


def bounded(problem, bounds=TIGHT):
    problem.loss.make_value_estimator(BoundedTD0Estimator, gamma=GAMMA, bounds=bounds)
    return problem


def test_one_step_is_the_clipped_target():
    problem = bounded(Problem())
    target = problem.loss.value_loss(problem.td())[1]["target_value"]
    plain = naive_target(problem, problem.actor_net(problem.state), 1, alive_fn=alive)
    expected = plain.squeeze(-1).detach().clip(*TIGHT)
    torch.testing.assert_close(target, expected)
    for bound in TIGHT:
        assert (target == bound).any(), "the case needs both bounds"
    assert len(target.unique()) > 2, "and targets between them"


def test_each_imagined_step_is_bounded():
    """``y_h = clip(r_h + gamma (1 - d_h) y_(h+1))``, from the last step to the first."""
    problem = bounded(Problem(horizon=3))
    found = problem.loss.value_loss(problem.td())[1]["target_value"]

    def backup(state, action, steps):
        following = problem.next_state(state, action)
        then = problem.target_actor(following)
        if steps > 1:
            value = backup(following, then, steps - 1)
        else:
            inputs = torch.cat([following, then], -1)
            value = torch.minimum(*[critic(inputs) for critic in problem.target_critics])
        y = reward_fn(state, action, following) + GAMMA * alive(following) * value
        return y.clip(*TIGHT)

    expected = backup(problem.state, problem.actor_net(problem.state), 3)
    torch.testing.assert_close(found, expected.squeeze(-1).detach())
    assert not torch.allclose(
        expected, naive_target(problem, problem.actor_net(problem.state), 3, alive_fn=alive)
    )


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_action_gradient_is_that_of_the_target_without_bounds(horizon):
    """And so are Eq. 13's paths, which add up to it."""
    free, held = Problem(horizon=horizon), bounded(Problem(horizon=horizon))
    errors = [
        problem.loss.value_loss(problem.td())[1]["action_gradient_error"]
        for problem in (free, held)
    ]
    assert errors[0].min() > 0
    torch.testing.assert_close(errors[1], errors[0])
    action = held.actor_net(held.state).detach().requires_grad_()
    target, _ = held.loss._target(held.td(), action, *held.loss._constants())
    (gradient,) = torch.autograd.grad(target.sum(), action)
    torch.testing.assert_close(sum(held.loss.target_gradient_paths(held.td()).values()), gradient)


@every_agent_loss
def test_bounds_that_do_not_bind_change_nothing(name):
    plain, wide = Case(name), Case(name)
    wide.loss.make_value_estimator(BoundedTD0Estimator, gamma=0.9, bounds=(-1e6, 1e6))
    for case in (plain, wide):
        torch.manual_seed(5)
        case.out = case.loss.value_loss(case.td())
    torch.testing.assert_close(plain.out, wide.out)


def test_compiles_in_one_graph():
    case = Case("MAGE-SAC", horizon=2)
    scaler = RewardScaler(0.9, dtype=torch.float64)
    case.loss.make_value_estimator(BoundedTD0Estimator, gamma=0.9, bounds=scaler.value_bounds)
    states = case.td()
    case.loss.check(states)
    torch.compiler.reset()
    graph = torch.compile(case.loss.value_loss, fullgraph=True, backend="aot_eager")
    for highest in (0.05, 0.2):  # statistics that change reach a compiled graph
        scaler.update(torch.tensor([-1.0, highest], dtype=torch.float64))
        found = []
        for value_loss in (graph, case.loss.value_loss):
            torch.manual_seed(1)
            found.append(value_loss(states)[1]["target_value"])
        torch.testing.assert_close(*found)
        assert found[0].max() <= scaler.value_bounds()[1]


@given(
    st.lists(st.integers(-80, 80).map(lambda x: x / 8), min_size=1, max_size=20),
    st.floats(0.0, 0.99),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_discounted_return_of_rewards_seen_lies_within_a_scalers_bounds(
    rewards, gamma, centered
):
    """An episode of them that ends, if one may; the worst and the best for ever reach them."""
    scaler = RewardScaler(gamma, centered=centered, dtype=torch.float64)
    reward = torch.tensor(rewards, dtype=torch.float64)
    scaler.update(reward)
    low, high = scaler.value_bounds()
    scaled = (reward - scaler.center) / scaler.value_range
    slack = 1e-9
    for endless in (scaled.min() / (1 - gamma), scaled.max() / (1 - gamma)):
        assert low - slack <= endless <= high + slack
    if not centered:
        discounts = gamma ** torch.arange(len(rewards), dtype=torch.float64)
        assert low - slack <= (discounts * scaled).sum() <= high + slack
        assert low <= 0 <= high
    assert -1 - slack <= low <= high <= 1 + slack


def test_a_scaler_that_saw_nothing_bounds_at_the_unit():
    low, high = RewardScaler(0.9).value_bounds()
    assert (low.item(), high.item()) == (-1, 1)


def test_renamed_keys_reach_an_estimator_of_ones_own():
    case = Case("MAGE", key=lambda name: ("agent", name))
    for estimator in (
        BoundedTD0Estimator(gamma=0.9, bounds=(0.0, 0.5)),
        TD0Estimator(gamma=0.9, value_network=None),
    ):
        case.loss.make_value_estimator(estimator)
        assert case.loss.value_estimator.tensor_keys.reward == ("agent", "reward")
        case.loss.value_loss(case.td())
    assert case.loss.make_value_estimator(BoundedTD0Estimator, gamma=0.5, bounds=(0, 1))
    assert case.loss.value_estimator.gamma.dtype == torch.float64


def test_what_does_not_bound_or_needs_trajectories_is_named():
    with pytest.raises(ValueError, match=r"low < high, got \(1.0, 1.0\)"):
        BoundedTD0Estimator(gamma=0.9, bounds=(1.0, 1.0))
    loss = Problem().loss
    for estimator in (GAE, GAE(gamma=0.9, lmbda=0.9, value_network=None)):
        with pytest.raises(NotImplementedError, match="GAE needs trajectories"):
            loss.make_value_estimator(estimator, gamma=0.9, lmbda=0.9, value_network=None)
