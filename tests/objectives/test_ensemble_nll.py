"""The likelihood against separate networks and closed forms; recovery of a known system."""

from __future__ import annotations

import pytest
import torch
from modules.test_world_model import ACTION, OBS, make_model, separate_network, transitions
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential

from torchrl_mage import GaussianEnsembleLoss, GaussianEnsembleWorldModel
from torchrl_mage.objectives import fit


def separate_nll(model, td_per_member):
    """``[E, *batch]``: each member's loss by a network of its own."""
    losses = []
    for member, td in enumerate(td_per_member):
        mu, log_var = separate_network(model, member)(td["observation"], td["action"])
        difference = td["next", "observation"] - td["observation"]
        target = (difference - model.difference_statistics.mean) / model.difference_statistics.std
        losses.append(((mu - target) ** 2 / log_var.exp() + log_var).mean(-1))
    return torch.stack(losses)


@pytest.mark.parametrize("batch", [(5,), (5, 2), ()])
@pytest.mark.parametrize("per_member", [True, False])
def test_nll_equals_separate_networks(per_member, batch):
    model = make_model(4)
    td = transitions(4, *batch) if per_member else transitions(*batch)
    parts = td.unbind(0) if per_member else [td] * 4
    expected = separate_nll(model, parts)
    mean = GaussianEnsembleLoss(model, per_member=per_member)(td)["loss_world_model"]
    torch.testing.assert_close(mean, expected.mean())
    none = GaussianEnsembleLoss(model, per_member=per_member, reduction="none")(td)
    torch.testing.assert_close(none["loss_world_model"], expected)
    total = GaussianEnsembleLoss(model, per_member=per_member, reduction="sum")(td)
    torch.testing.assert_close(total["loss_world_model"], expected.sum())


def test_gradient_reaches_each_member_from_its_own_minibatch():
    model = make_model(3)
    td = transitions(3, 5)
    loss = GaussianEnsembleLoss(model, reduction="none")
    loss(td)["loss_world_model"][1].sum().backward()
    for parameter in loss.world_model_params.parameters():
        assert parameter.grad[1].abs().sum() > 0
        assert parameter.grad[[0, 2]].abs().sum() == 0


def test_hand_computed():
    """A network of zeros predicts mean 0 and log-variance -3: loss = t^2 e^3 - 3."""
    model = GaussianEnsembleWorldModel(OBS, ACTION, ensemble_size=2, num_cells=(4,))
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
    td = TensorDict(
        {
            "observation": torch.zeros(6, OBS),
            "action": torch.zeros(6, ACTION),
            ("next", "observation"): torch.full((6, OBS), 0.5),
        },
        [6],
    )
    loss = GaussianEnsembleLoss(model, per_member=False)(td)
    expected = torch.tensor(0.25).mul(torch.tensor(3.0).exp()).sub(3)
    torch.testing.assert_close(loss["loss_world_model"], expected)
    torch.testing.assert_close(loss["mean_squared_error"], torch.tensor(0.25))
    torch.testing.assert_close(loss["log_variance"], torch.tensor(-3.0))


def test_recovers_a_stochastic_linear_system():
    """s' = s + A s + B a + sigma e: mean and variance of every member end near the truth.

    The normalised noise lies inside the bounds of the log-variance. The bounds, for 4,000
    transitions: 20 % of the noise for the mean's root-mean-square error, 15 % for the variance.
    """
    drift = torch.tensor([[-0.3, 0.1], [0.0, -0.2]])
    push = torch.tensor([[0.5], [-0.4]])
    sigma = torch.tensor([0.15, 0.10])

    def truth(observation, action):
        return observation + observation @ drift.T + action @ push.T

    observation, action = torch.randn(4000, 2), 2 * torch.rand(4000, 1) - 1
    next_observation = truth(observation, action) + sigma * torch.randn(4000, 2)
    td = TensorDict(
        {
            "observation": observation,
            "action": action,
            ("next", "observation"): next_observation,
        },
        [4000],
    )
    model = GaussianEnsembleWorldModel(2, 1, ensemble_size=3, num_cells=(32,))
    model.update_normalizer(td)
    loss = GaussianEnsembleLoss(model)
    optimizer = torch.optim.Adam(loss.world_model_params.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        loss(td[torch.randint(4000, (3, 256))])["loss_world_model"].backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    test_observation, test_action = torch.randn(500, 2), 2 * torch.rand(500, 1) - 1
    with torch.no_grad():
        mean, var = model.predict(test_observation, test_action)
    error = (mean - truth(test_observation, test_action)).square().mean(1).sqrt()
    assert (error < 0.2 * sigma).all(), error / sigma
    ratio = var.mean(1) / sigma.square()
    assert ((ratio - 1).abs() < 0.15).all(), ratio


def test_per_member_needs_a_minibatch_for_each():
    loss = GaussianEnsembleLoss(make_model(4))
    with pytest.raises(ValueError, match=r"each of the 4 members.*got \[5\].*per_member=False"):
        loss(transitions(5))


def test_missing_key_and_dtype_are_named():
    loss = GaussianEnsembleLoss(make_model(4), per_member=False)
    with pytest.raises(ValueError, match=r"reads \('next', 'observation'\), which the t"):
        loss(transitions(5).exclude("next"))
    with pytest.raises(ValueError, match="dtype torch.float32, the world model torch.float64"):
        loss(transitions(5, dtype=torch.float32))
    with pytest.raises(ValueError, match="reduction must be .* got 'median'"):
        GaussianEnsembleLoss(make_model(4), reduction="median")


def test_mask_of_the_batch_leaves_the_members_alone():
    """Three members and three transitions, so that a mask on the wrong axis would go unseen."""
    model = make_model(3)
    td = transitions(3)
    mask = torch.tensor([[True], [False], [True]])
    expected = separate_nll(model, [td] * 3)[:, [0, 2]].mean()
    masked = td.clone().set(("collector", "mask"), mask)
    out = GaussianEnsembleLoss(model, per_member=False)(masked)["loss_world_model"]
    torch.testing.assert_close(out, expected)


def test_shapes_and_modules_that_do_not_fit_are_named():
    loss = GaussianEnsembleLoss(make_model(2), per_member=False)
    td = transitions(5)
    td["next", "observation"] = td["next", "observation"][:, :1]
    with pytest.raises(ValueError, match=r"next observation \(5, 1\) do not belong together"):
        loss(td)
    with pytest.raises(ValueError, match="got TensorDictSequential; pass the ensemble alone"):
        GaussianEnsembleLoss(TensorDictSequential(make_model(2)))


def test_statistics_that_change_later_are_seen():
    model = make_model(2)
    loss = GaussianEnsembleLoss(model, per_member=False, reduction=None)
    td = transitions(6)
    before = loss(td)["loss_world_model"]
    model.update_normalizer(transitions(30))
    after = loss(td)["loss_world_model"]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, separate_nll(model, [td] * 2).mean())


@pytest.mark.parametrize("moved", ["loss", "model"])
def test_statistics_stay_the_models_when_either_is_converted(moved):
    model = make_model(2)
    loss = GaussianEnsembleLoss(model, per_member=False)
    {"loss": loss, "model": model}[moved].float().double()
    td = transitions(6)
    model.update_normalizer(transitions(30))
    expected = separate_nll(model, [td] * 2).mean()
    torch.testing.assert_close(loss(td)["loss_world_model"], expected)
    loss.to("cpu")  # whichever was converted before, the model's statistics are the ones
    torch.testing.assert_close(loss(td)["loss_world_model"], expected)
    before = model.observation_statistics.count.clone()
    loss.float().double()
    assert model.observation_statistics.count == before > 0
    torch.testing.assert_close(loss(td)["loss_world_model"], expected, rtol=1e-4, atol=1e-4)
    kept = loss.state_dict()["world_model_params.difference_statistics.std"]
    torch.testing.assert_close(kept, model.difference_statistics.std)


def test_renamed_keys_and_the_models_own_parameters():
    model = make_model(2)
    loss = GaussianEnsembleLoss(model, per_member=False)
    td = transitions(5)
    expected = loss(td)["loss_world_model"]
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(obs="state")
    renamed = TensorDict(
        {
            ("agent", "state"): td["observation"],
            "action": td["action"],
            ("next", "agent", "state"): td["next", "observation"],
        },
        [5],
    )
    loss.set_keys(observation=("agent", "state"), next_observation=("next", "agent", "state"))
    torch.testing.assert_close(loss(renamed)["loss_world_model"], expected)
    loss.set_keys(observation=None, next_observation=None)
    # training the loss trains the model that the user holds
    assert {id(p) for p in loss.world_model_params.parameters()} == {
        id(p) for p in model.parameters()
    }
    loss.reset_parameters_recursive()
    assert not torch.allclose(loss(td)["loss_world_model"], expected)


@pytest.mark.parametrize(("new", "count"), [(0, 0), (4, 4), (10, 10), (12, 10)])
def test_only_the_new_transitions_enter_the_statistics(new, count):
    model = GaussianEnsembleWorldModel(1, 1, ensemble_size=2, num_cells=(4,))
    rows = torch.arange(10.0)[:, None]
    data = TensorDict(
        {"observation": rows, "action": rows, ("next", "observation"): rows + 1}, [10]
    )
    fit(model, lambda batch: None, data, new=new, batch_size=5, min_batches=1)
    assert model.observation_statistics.count == count
    mean = model.observation_statistics.mean.item()
    assert mean == (sum(range(10 - count, 10)) / count if count else 0.0)
