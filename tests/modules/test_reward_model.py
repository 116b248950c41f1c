"""Learned reward and termination: what they converge to, and that their gradients flow."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_mage import RewardModel, TerminationModel, get_task
from torchrl_mage.objectives import radam

OBS, ACTION = 3, 2


def transitions(count):
    return TensorDict(
        {
            "observation": 5 + 3 * torch.randn(count, OBS),
            "action": torch.rand(count, ACTION) * 2 - 1,
            ("next", "observation"): 5 + 3 * torch.randn(count, OBS),
        },
        [count],
    )


def fit(model, td, steps=600):
    model.update_normalizer(td)
    optimizer = radam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model.loss(td[torch.randint(len(td), (128,))])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_a_reward_of_all_three_is_recovered(unit):
    """It reads the next state and the action too, which the authors' code never did."""

    def reward(td):
        state, next_state = td["observation"], td["next", "observation"]
        paid = 100 + state[..., :1] - 2 * next_state[..., 1:2] + 5 * td["action"][..., :1]
        return unit * paid

    td = transitions(4000)
    td["next", "reward"] = reward(td)
    model = fit(RewardModel(OBS, ACTION, num_cells=[32]), td)
    test = transitions(500)
    error = model(test.clone())["next", "reward"] - reward(test)
    assert error.square().mean().sqrt() < 0.05 * reward(test).std()


@pytest.mark.parametrize("paid", [0.0, -7.5, 1e-12])
def test_a_reward_that_never_varied_is_predicted_as_it_is(paid):
    """An untrained network would claim rewards of about 1 where none was ever seen."""
    td = transitions(20)
    td["next", "reward"] = torch.full((20, 1), paid)
    model = RewardModel(OBS, ACTION, num_cells=[8])
    model.update_normalizer(td)
    torch.testing.assert_close(
        model(transitions(5))["next", "reward"], torch.full((5, 1), paid), rtol=0, atol=0
    )
    td["next", "reward"][0] += 1.0
    model.update_normalizer(td)
    assert len(model(transitions(5))["next", "reward"].unique()) == 5


def test_its_loss_is_the_mean_squared_error_in_units_of_the_reward():
    td = transitions(50)
    td["next", "reward"] = 7 + 3 * torch.randn(50, 1)
    model = RewardModel(OBS, ACTION, num_cells=[8])
    model.update_normalizer(td)
    error = model(td.clone())["next", "reward"] - td["next", "reward"]
    expected = error.square().mean() / td["next", "reward"].var(correction=0)
    torch.testing.assert_close(model.loss(td), expected)


def test_the_probability_of_an_end_is_calibrated():
    td = transitions(20_000)
    true = ((td["next", "observation"][..., :1] - 5) / 1.5).sigmoid()
    td["next", "terminated"] = torch.rand_like(true) < true
    model = fit(TerminationModel(OBS, ACTION, num_cells=[16]), td, steps=1500)
    test = transitions(1000)
    true = ((test["next", "observation"][..., :1] - 5) / 1.5).sigmoid()
    out = model(test)
    assert (out["next", "termination_probability"] - true).abs().mean() < 0.05
    assert torch.equal(out["next", "terminated"], out["next", "termination_probability"] > 0.5)


def test_nothing_ends_before_an_end_was_seen():
    td = TerminationModel(OBS, ACTION)(transitions(100))
    assert not td["next", "terminated"].any()
    assert td["next", "termination_probability"].mean() < 0.1


@pytest.mark.parametrize("cls", [RewardModel, TerminationModel])
def test_the_action_reaches_the_output_directly_and_through_the_next_state(cls):
    model, td = cls(OBS, ACTION, num_cells=[8]), transitions(4)
    entries = [td[key].requires_grad_() for key in model.in_keys]
    out = model(td)["next", "reward" if cls is RewardModel else "termination_probability"]
    for gradient in torch.autograd.grad(out.sum(), entries):
        assert (gradient != 0).any()


def test_a_learned_termination_fits_cartpoles():
    env = get_task("torchrl_mage/ContinuousCartPole-v1").make_env()
    env.set_seed(0)
    td = torch.cat([env.rollout(500, break_when_any_done=False) for _ in range(4)])
    model = fit(TerminationModel(4, 1, num_cells=[64]), td, steps=1000)
    agree = model(td.clone())["next", "terminated"] == td["next", "terminated"]
    assert agree.float().mean() > 0.98
    assert td["next", "terminated"].float().mean() > 0.02, "else agreeing is no achievement"


@pytest.mark.parametrize(
    ("cls", "name", "truth"),
    [(RewardModel, "reward", "reward"), (TerminationModel, "termination", "terminated")],
)
def test_a_missing_entry_is_named(cls, name, truth):
    model, td = cls(OBS, ACTION, num_cells=[8]), transitions(4)
    there = r".*its keys are \[.*'action'.*'observation'"
    with pytest.raises(
        ValueError, match=rf"the {name} model reads \('next', '{truth}'\), which{there}"
    ):
        model.loss(td)
    td["next", truth] = torch.zeros(4, 1)
    lacking = td.exclude("observation")
    for use in (model, model.loss, model.update_normalizer):
        with pytest.raises(ValueError, match=f"the {name} model reads 'observation', which"):
            use(lacking)


def test_what_misses_a_reward_is_not_taken_in():
    model = RewardModel(OBS, ACTION, num_cells=[8])
    with pytest.raises(ValueError, match=r"the reward model reads \('next', 'reward'\), which"):
        model.update_normalizer(transitions(4))
    assert model.observation_statistics.count == 0
