"""The likelihood of discrete states against closed forms and separate networks."""

from __future__ import annotations

import math

import pytest
import torch
import windy_grid
from modules.test_categorical_world_model import (
    ACTION,
    CATEGORIES,
    OBS,
    make_model,
    separate_logits,
    transitions,
)
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch.nn.functional import cross_entropy

from torchrl_mage import CategoricalEnsembleLoss, CategoricalWorldModel, GaussianEnsembleWorldModel
from torchrl_mage.objectives import fit


def separate_nll(model, td_per_member):
    """``[E, B]``: each member's cross-entropy by a network of its own."""
    losses = []
    for member, td in enumerate(td_per_member):
        parts = zip(
            separate_logits(model, member, td),
            td["next", "observation"].split(CATEGORIES, -1),
            strict=True,
        )
        each = [cross_entropy(x, y.argmax(-1), reduction="none") for x, y in parts]
        losses.append(torch.stack(each).mean(0))
    return torch.stack(losses)


@pytest.mark.parametrize("per_member", [True, False])
def test_nll_equals_separate_networks(per_member):
    model = make_model(4)
    td = transitions(4, 5) if per_member else transitions(5)
    expected = separate_nll(model, td.unbind(0) if per_member else [td] * 4)
    for reduction, value in (
        ("mean", expected.mean()),
        ("sum", expected.sum()),
        ("none", expected),
    ):
        loss = CategoricalEnsembleLoss(model, per_member=per_member, reduction=reduction)
        torch.testing.assert_close(loss(td)["loss_world_model"], value)


def test_gradient_reaches_each_member_from_its_own_minibatch():
    loss = CategoricalEnsembleLoss(make_model(3), reduction="none")
    loss(transitions(3, 5))["loss_world_model"][1].sum().backward()
    for parameter in loss.world_model_params.parameters():
        assert parameter.grad[1].abs().sum() > 0
        assert parameter.grad[[0, 2]].abs().sum() == 0


def test_hand_computed():
    """Biases alone: p = (1/2, 1/4, 1/4) and (1/10, 9/10); seen are the first of each."""
    model = CategoricalWorldModel(OBS, ACTION, categories=CATEGORIES, num_cells=(4,))
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.1, 0.9])
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
        model.network[-1].bias[:] = torch.cat([p, q]).log()
    following = torch.tensor([[1.0, 0, 0, 1, 0]] * 6)
    td = TensorDict(
        {
            "observation": following,
            "action": torch.zeros(6, ACTION),
            ("next", "observation"): following,
        },
        [6],
    )
    out = CategoricalEnsembleLoss(model, per_member=False)(td)
    expected = (math.log(2) + math.log(10)) / 2
    assert out["loss_world_model"].item() == pytest.approx(expected)
    assert out["accuracy"].item() == pytest.approx(0.5)
    entropy = -sum(x * math.log(x) for x in (0.5, 0.25, 0.25, 0.1, 0.9)) / 2
    assert out["entropy"].item() == pytest.approx(entropy)
    assert not out["accuracy"].requires_grad
    assert not out["entropy"].requires_grad


def test_fit_recovers_the_windy_grid():
    """From 4,000 transitions; the bound on the total variation is a third of a uniform guess's."""
    cells = windy_grid.states()
    observation = cells[torch.randint(len(cells), (4000,))]
    action = 2 * torch.rand(4000, 2) - 1
    drawn = torch.multinomial(windy_grid.transition(observation, action), 1).squeeze(-1)
    data = TensorDict(
        {"observation": observation, "action": action, ("next", "observation"): cells[drawn]},
        [4000],
    )
    model = CategoricalWorldModel(
        windy_grid.OBS, 2, categories=windy_grid.CATEGORIES, ensemble_size=2, num_cells=(32,)
    )
    loss = CategoricalEnsembleLoss(model)
    optimizer = torch.optim.Adam(loss.world_model_params.parameters(), lr=1e-2)

    def minimize(batch):
        loss(batch)["loss_world_model"].backward()
        optimizer.step()
        optimizer.zero_grad()

    fit(model, minimize, data, new=4000, batch_size=256, min_batches=300)
    observation, action = cells.repeat(50, 1), 2 * torch.rand(600, 2) - 1
    with torch.no_grad():
        column, row = model.predict(observation, action).split(windy_grid.CATEGORIES, -1)
    predicted = (column[..., :, None] * row[..., None, :]).flatten(-2)
    truth = windy_grid.transition(observation, action)
    error = 0.5 * (predicted - truth).abs().sum(-1).mean(1)
    assert (error < 0.12).all(), error


def test_bad_input_is_named():
    loss = CategoricalEnsembleLoss(make_model(4), per_member=False)
    td = transitions(5)
    td["next", "observation"][2, 0] = 0.5
    with pytest.raises(ValueError, match=r"\('next', 'observation'\) must be one-hot"):
        loss(td)
    with pytest.raises(ValueError, match=r"each of the 4 members.*got \[5\].*per_member=False"):
        CategoricalEnsembleLoss(make_model(4))(transitions(5))
    with pytest.raises(ValueError, match="fits a CategoricalWorldModel, got TensorDictSequential"):
        CategoricalEnsembleLoss(TensorDictSequential(make_model(2)))
    with pytest.raises(ValueError, match="fits a CategoricalWorldModel, got GaussianEnsemble"):
        CategoricalEnsembleLoss(GaussianEnsembleWorldModel(3, 1, num_cells=(4,)))


def test_keys_and_dispatch():
    model, td = make_model(2), transitions(5)
    loss = CategoricalEnsembleLoss(model, per_member=False)
    out = loss(td)
    value, accuracy, entropy = loss(
        observation=td["observation"],
        action=td["action"],
        next_observation=td["next", "observation"],
    )
    torch.testing.assert_close(value, out["loss_world_model"])
    torch.testing.assert_close((accuracy, entropy), (out["accuracy"], out["entropy"]))
