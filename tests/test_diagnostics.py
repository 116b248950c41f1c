"""What is said of a model, against models whose errors are known."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_mage import (
    GaussianEnsembleWorldModel,
    OraclePendulum,
    diagnostics,
    get_task,
    predict_open_loop,
)
from torchrl_mage.diagnostics import (
    model_diagnostics,
    oracle_gradient_error,
    oracle_value,
    policy_gradient_bound,
)


def constant_model(*means, log_var=-3.0):
    """Members that foresee a difference of ``means``, whatever the input, in raw units."""
    model = GaussianEnsembleWorldModel(1, 1, ensemble_size=len(means), num_cells=(4,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        bias = model.network[-1].bias  # [E, 1, 2 D]; a raw log-variance of 0 is the middle, -3
        bias[:, 0, 0] = torch.tensor(means)
    return model


def episode(*observations):
    """One that passes through the observations."""
    x = torch.tensor(observations).unsqueeze(-1)
    return TensorDict(
        {
            "observation": x[:-1],
            "action": torch.zeros(len(x) - 1, 1),
            "next": {"observation": x[1:]},
        },
        [len(x) - 1],
    )


def test_likelihood_of_each_member():
    """Steps of 1: the member that says 1 is certain, the one that says 1.5 is 0.5 off."""
    found = model_diagnostics(constant_model(1.0, 1.5), [episode(0.0, 1.0, 2.0)])
    expected = torch.tensor([-3.0, 0.25 * math.exp(3.0) - 3.0])
    torch.testing.assert_close(found["model_nll"], expected)


def test_calibration_counts_what_lies_inside():
    """One member, sigma = exp(-1.5) = 0.223; deviations of 0.1, 0.3, 0.4 and 1."""
    steps = [episode(0.0, deviation) for deviation in (0.1, 0.3, -0.4, 1.0)]
    found = model_diagnostics(constant_model(0.0), steps)
    assert found["model_within_1_sigma"] == 0.25
    assert found["model_within_2_sigma"] == 0.75


def test_disagreement_is_the_spread_of_the_means():
    found = model_diagnostics(constant_model(-2.0, 0.0, 2.0), [episode(0.0, 1.0)])
    torch.testing.assert_close(found["model_disagreement"], torch.tensor(math.sqrt(8 / 3)))


def test_open_loop_error_grows_with_the_steps():
    """A bias of 0.5 a step, over windows of three steps and a rest of one."""
    found = model_diagnostics(
        constant_model(1.0, 2.0), [episode(0.0, 1.0, 2.0, 3.0, 4.0)], horizon=3
    )
    torch.testing.assert_close(found["model_open_loop_error"], torch.tensor([0.5, 1.0, 1.5]))


def test_errors_are_in_standard_deviations():
    model = constant_model(1.0)
    for statistics, std in (
        (model.difference_statistics, 2.0),
        (model.observation_statistics, 4.0),
    ):
        statistics.std.fill_(std)
    found = model_diagnostics(model, [episode(0.0, 3.0)], horizon=1)
    # The member says 1 standard deviation of 2; 3 is half a standard deviation more.
    torch.testing.assert_close(found["model_nll"], torch.tensor([0.25 * math.exp(3.0) - 3.0]))
    torch.testing.assert_close(found["model_open_loop_error"], torch.tensor([0.25]))


def test_episodes_of_different_lengths():
    found = model_diagnostics(constant_model(0.0), [episode(0.0, 1.0), episode(0.0, 0.0, 0.0)])
    # After one step an error of 1 and two of 0 in windows of two steps; after two, one of 0.
    torch.testing.assert_close(
        found["model_open_loop_error"], torch.tensor([math.sqrt(1 / 2), 0.0])
    )


def test_nothing_to_look_at_is_named():
    with pytest.raises(ValueError, match="at least one episode"):
        model_diagnostics(constant_model(0.0), [])


def test_the_gradients_error_starts_from_a_reset():
    """What an environment's reset gives beside the observation is not read."""
    policy = TensorDictModule(nn.Linear(3, 1), ["observation"], ["action"])
    qvalue = TensorDictModule(
        lambda s, a: (s * a).sum(-1, keepdim=True),
        ["observation", "action"],
        ["state_action_value"],
    )
    start = get_task("Pendulum-v1").make_env().reset()
    assert "done" in start
    found = [
        oracle_gradient_error(policy, qvalue, OraclePendulum(), td, horizon=3, gamma=0.9)
        for td in (start, start.select("observation"))
    ]
    assert found[0] > 0
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "weight", [torch.ones(4, 1), torch.ones(3), torch.zeros(4), -torch.ones(4)]
)
def test_weights_that_are_none_are_named(weight):
    policy = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"weight must be \[4\], non-negative and not all zero"):
        policy_gradient_bound(policy, torch.ones(4, 2), torch.ones(4, 1), gamma=0.5, weight=weight)


def test_is_reached_by_the_packages_name():
    assert diagnostics.model_diagnostics is model_diagnostics


def test_the_error_of_a_critic_that_does_not_read_the_action():
    """Its slope is zero, as that of one which reads and ignores it."""
    policy = TensorDictModule(lambda s: 0.3 * s[..., :1], ["observation"], ["action"])
    blind = TensorDictModule(nn.Linear(3, 1), ["observation"], ["state_action_value"])
    flat = TensorDictModule(lambda a: 0 * a, ["action"], ["state_action_value"])
    start = TensorDict(observation=torch.tensor([[0.6, 0.8, 1.0]]), batch_size=[1])
    found, wanted = (
        oracle_gradient_error(policy, critic, OraclePendulum(), start, horizon=5, gamma=0.9)
        for critic in (blind, flat)
    )
    torch.testing.assert_close(found, wanted)
    assert found > 0


def test_each_member_goes_its_own_way_open_loop():
    """Members that say 1 and 2 a step, from 5 on, whatever the episode's later states are."""
    model = constant_model(1.0, 2.0)
    model.difference_statistics.update(torch.tensor([[-1.0], [1.0]]))  # not constant, std 1
    found = predict_open_loop(model, episode(5.0, -7.0, 0.0, 3.0), 3)
    expected = torch.tensor([[6.0, 7.0, 8.0], [7.0, 9.0, 11.0]]).unsqueeze(-1)
    torch.testing.assert_close(found, expected)


def test_a_members_own_state_is_what_it_reads():
    """Against the recursion of one member after the other, with networks that read the state."""
    torch.manual_seed(1)
    model = GaussianEnsembleWorldModel(3, 1, ensemble_size=4, num_cells=(8,))
    real = get_task("Pendulum-v1").make_env().rollout(6)
    model.update_normalizer(real)
    found = predict_open_loop(model, real, 5)
    for member in range(4):
        state = real["observation"][0]
        for t in range(5):
            state = model.predict(state, real["action"][t])[0][member]
            torch.testing.assert_close(found[member, t], state)
    assert found[:, -1].std(0).min() > 0


def test_what_never_changed_stays_open_loop():
    model = constant_model(3.0)  # in normalised units, where no difference was ever seen
    model.difference_statistics.update(torch.tensor([[0.25], [0.25]]))
    found = predict_open_loop(model, episode(1.0, 0.0, 0.0), 2)
    torch.testing.assert_close(found, torch.tensor([[[1.25], [1.5]]]))


@pytest.mark.parametrize("steps", [0, 3])
def test_steps_that_an_episode_has_not_are_named(steps):
    with pytest.raises(ValueError, match=f"got {steps} and an episode of shape \\[2\\]"):
        predict_open_loop(constant_model(0.0), episode(0.0, 1.0, 2.0), steps)


def test_the_oracles_value_is_pendulums_return():
    """gymnasium pays it; its gradient agrees with finite differences of the first action."""
    policy = TensorDictModule(lambda s: 0.3 * s[..., 1:2], ["observation"], ["action"])
    env, gamma, horizon = get_task("Pendulum-v1").make_env(), 0.9, 20
    env.set_seed(3)
    start = env.reset()
    rewards = env.rollout(horizon, policy, auto_reset=False, tensordict=start.clone())
    discounted = rewards["next", "reward"].squeeze(-1) * gamma ** torch.arange(horizon)
    start = start.select("observation").double().unsqueeze(0)
    value, slope = oracle_value(policy, OraclePendulum(), start, horizon=horizon, gamma=gamma)
    assert value.item() == pytest.approx(discounted.sum().item(), rel=1e-4)

    def pushed(push):
        td = start.clone()
        total = 0.0
        for t in range(horizon):
            action = policy(td)["action"] + push * (t == 0)
            td = OraclePendulum()(td.set("action", action))
            total += gamma**t * td["next", "reward"].item()
            td = td["next"].select("observation")
        return total

    assert slope.item() == pytest.approx((pushed(1e-5) - pushed(-1e-5)) / 2e-5, rel=1e-5)
