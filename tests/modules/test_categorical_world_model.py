"""Discrete states: the draw's distribution, its gradient against enumeration and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
import windy_grid
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import nn
from torch.nn.functional import one_hot
from torchrl.envs import GymWrapper

from torchrl_mage import CategoricalWorldModel, ModelBasedEnv
from torchrl_mage.functional import straight_through_one_hot

CATEGORIES, ACTION = (3, 2), 2
OBS = sum(CATEGORIES)


def make_model(ensemble_size=4, **kwargs):
    kwargs = {"num_cells": (8, 8), "dtype": torch.float64, "categories": CATEGORIES} | kwargs
    model = CategoricalWorldModel(OBS, ACTION, ensemble_size=ensemble_size, **kwargs)
    with torch.no_grad():  # biases that a mix-up would show
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.update_normalizer(transitions(50, dtype=kwargs["dtype"]))
    return model


def cells(*shape, dtype=torch.float64):
    parts = [one_hot(torch.randint(size, shape), size) for size in CATEGORIES]
    return torch.cat(parts, -1).to(dtype)


def transitions(*shape, dtype=torch.float64):
    return TensorDict(
        observation=cells(*shape, dtype=dtype),
        action=1 + 2 * torch.rand(*shape, ACTION, dtype=dtype),
        next=TensorDict(observation=cells(*shape, dtype=dtype), batch_size=shape),
        batch_size=shape,
    )


def separate_logits(model, member, td):
    """Member ``member`` as an ordinary network of ``nn.Linear`` layers: each variable's logits."""
    layers = []
    for layer in model.network:
        if isinstance(layer, nn.SiLU):
            layers.append(layer)
            continue
        linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2], dtype=layer.weight.dtype)
        linear.weight.data = layer.weight.data[member].T.clone()
        linear.bias.data = layer.bias.data[member, 0].clone()
        layers.append(linear)
    statistics = model.action_statistics
    action = (td["action"] - statistics.mean) / statistics.std
    logits = nn.Sequential(*layers)(torch.cat([td["observation"], action], -1))
    return logits.split(CATEGORIES, -1)


def test_predict_equals_separate_networks():
    model, td = make_model(), transitions(5, 7)
    probabilities = model.predict(td["observation"], td["action"])
    assert probabilities.shape == (4, 5, 7, OBS)
    for member in range(4):
        parts = [logits.softmax(-1) for logits in separate_logits(model, member, td)]
        torch.testing.assert_close(probabilities[member], torch.cat(parts, -1))


@pytest.mark.parametrize("sampling", ["balanced", "independent"])
def test_draws_are_one_hot_and_as_likely_as_the_members_mean_says(sampling):
    model = make_model(3, sampling=sampling, temperature=2.0)
    td, draws = transitions(1).exclude("next"), 20_000
    drawn = model(td.expand(draws).clone())["next", "observation"]
    assert ((drawn == 0) | (drawn == 1)).all(), "exactly, so that it may be an observation again"
    for part in drawn.split(CATEGORIES, -1):
        assert (part.sum(-1) == 1).all()
    expected = model.predict(td["observation"], td["action"]).mean((0, 1))
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((drawn.mean(0) - expected).abs() < 5 * error).all()
    assert error.max() < 0.01 < expected.min()


@pytest.mark.parametrize("sampling", ["balanced", "independent"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_batch_shape(sampling, shape, dtype):
    model = make_model(4, sampling=sampling, dtype=dtype)
    td = transitions(*shape, dtype=dtype).exclude("next")
    out = model(td.clone())
    assert out["next", "observation"].shape == (*shape, OBS)
    assert out["next", "observation"].dtype == dtype
    assert set(out.keys(True, True)) == {"observation", "action", ("next", "observation")}
    (gradient,) = torch.autograd.grad(
        out["next", "observation"][..., 0].sum(), model.network[-1].bias
    )
    assert gradient.isfinite().all()


def test_one_variable_is_the_default_and_a_member_may_be_chosen():
    model = CategoricalWorldModel(3, 1, ensemble_size=3, num_cells=(4,))
    assert model.categories == (3,)
    with torch.no_grad():  # each member is certain of the category that is its number
        for parameter in model.parameters():
            parameter.zero_()
        model.network[-1].bias[:, 0] = 100 * torch.eye(3)
    member = torch.tensor([[2], [0], [2], [1]])
    td = TensorDict(
        observation=torch.eye(3)[[0] * 4], action=torch.zeros(4, 1), ensemble_member=member
    )
    drawn = model(td)["next", "observation"]
    torch.testing.assert_close(drawn, torch.eye(3)[member.squeeze(-1)])


def test_gradient_is_the_relaxed_draws_of_the_same_noise():
    """Against finite differences of softmax((logits + g) / tau), the noise held fixed."""
    model = make_model(1, temperature=0.7)
    td = transitions(1).exclude("next")
    weight = torch.randn(OBS, dtype=torch.float64)

    def relaxed(action):
        logits = separate_logits(model, 0, td.clone(False).set("action", action))
        torch.manual_seed(5)
        torch.rand(1)  # the members' draw
        total = 0
        for part, factor in zip(logits, weight.split(CATEGORIES), strict=True):
            gumbel = -torch.empty_like(part).exponential_().log()
            total = total + (((part + gumbel) / 0.7).softmax(-1) * factor).sum()
        return total

    action = td["action"].clone().requires_grad_()
    torch.manual_seed(5)
    value = model(td.clone(False).set("action", action))["next", "observation"]
    (gradient,) = torch.autograd.grad((value * weight).sum(), action)
    with torch.no_grad():
        steps = 1e-5 * torch.eye(ACTION, dtype=torch.float64)
        slopes = [(relaxed(action + h) - relaxed(action - h)) / 2e-5 for h in steps]
    torch.testing.assert_close(gradient[0], torch.stack(slopes), rtol=1e-6, atol=1e-8)


def relaxed_slope(logit, temperature, slope=lambda hard: 1.0):
    """E[slope(x) dy/dl] of two categories, ``y = sigmoid((l + z) / tau)``, ``z`` logistic.

    By the trapezoidal rule, ``x`` the indicator of ``l + z > 0``.
    """
    u = torch.linspace(-40, 40, 800_001, dtype=torch.float64)  # (l + z) / tau
    kernel = u.sigmoid() * (-u).sigmoid()
    z = temperature * u - logit
    density = z.sigmoid() * (-z).sigmoid()
    return torch.trapezoid(slope((u > 0).double()) * kernel * density, u).item()


def drawn_slope(logit, temperature, target, draws=200_000):
    """Mean and standard error of the gradient in the logit of ``target`` of a draw of two."""
    logits = torch.tensor([logit, 0.0], dtype=torch.float64).repeat(draws, 1).requires_grad_()
    target(straight_through_one_hot(logits, temperature)[:, 0]).sum().backward()
    slope = logits.grad[:, 0]
    return slope.mean().item(), slope.std().item() / math.sqrt(draws)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_a_linear_targets_gradient_is_that_of_the_relaxed_draws_mean(temperature):
    logit = 0.8
    mean, error = drawn_slope(logit, temperature, lambda x: 3 * x)
    expected = 3 * relaxed_slope(logit, temperature)
    assert abs(mean - expected) < 4 * error < 0.05 * expected
    p = 1 / (1 + math.exp(-logit))
    exact = 3 * p * (1 - p)
    if temperature == 0.1:  # where the bias is below the sampling error
        assert abs(mean - exact) < 4 * error
    else:
        assert abs(mean - exact) > 4 * error, "the bias, which the docstring states"


def test_bias_is_of_the_order_of_the_squared_temperature():
    logit = 0.8
    p = 1 / (1 + math.exp(-logit))
    bias = [p * (1 - p) - relaxed_slope(logit, temperature) for temperature in (0.2, 0.1, 0.05)]
    assert bias[0] / bias[1] == pytest.approx(4, rel=0.05)
    assert bias[1] / bias[2] == pytest.approx(4, rel=0.05)


def test_other_targets_enter_by_the_mean_of_their_slopes_at_both_categories():
    """x^2 has the slopes 0 and 2, on average its difference 1; x^3 has 0 and 3, on average 1.5."""
    logit, temperature = 0.8, 0.05
    p = 1 / (1 + math.exp(-logit))
    for power, share in ((2, 1.0), (3, 1.5)):
        mean, error = drawn_slope(logit, temperature, lambda x, power=power: x**power)
        by_quadrature = relaxed_slope(logit, temperature, lambda x, power=power: power * x)
        assert abs(mean - by_quadrature) < 4 * error
        assert by_quadrature == pytest.approx(share * p * (1 - p), rel=0.05)
        assert 4 * error < 0.1 * by_quadrature


def test_one_members_work_per_sample():
    model, rows = make_model(8), []
    model.network.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape))
    model(transitions(1025))
    assert rows == [(8, 129, OBS + ACTION)]


def test_action_statistics_are_those_of_all_transitions_passed():
    model = CategoricalWorldModel(OBS, ACTION, categories=CATEGORIES, dtype=torch.float64)
    data = transitions(60)
    for part in data.split([1, 59]):
        model.update_normalizer(part)
    torch.testing.assert_close(model.action_statistics.mean, data["action"].mean(0))
    torch.testing.assert_close(model.action_statistics.std, data["action"].std(0, correction=0))


def test_rollouts_stay_in_the_cells_and_keep_their_member():
    base = GymWrapper(windy_grid.WindyGrid())
    dynamics = CategoricalWorldModel(
        windy_grid.OBS, 2, categories=windy_grid.CATEGORIES, num_cells=(8,)
    )
    world_model = TensorDictSequential(dynamics, windy_grid.reward)
    env = ModelBasedEnv(world_model, base, propagation="trajectory")
    start = TensorDict(observation=windy_grid.states(), batch_size=[12])
    data = env.rollout(6, tensordict=start, auto_reset=False)
    dynamics.check_one_hot("observation", data["next", "observation"])
    assert (data["ensemble_member"] == data["ensemble_member"][:, :1]).all()
    assert data["next", "reward"].shape == (12, 6, 1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"categories": (3, 3)}, r"sum to obs_dim=5, .* got \(3, 3\), whose sum is 6"),
        ({"categories": (6, -1)}, r"positive numbers .* got \(6, -1\)"),
        ({"categories": ()}, r"got \(\), whose sum is 0"),
        ({"temperature": 0.0}, r"temperature must be a finite number above 0, got 0\.0"),
        ({"temperature": -1.0}, "above 0, got -1.0"),
        ({"temperature": float("nan")}, "above 0, got nan"),
        (
            {"sampling": "mean"},
            r"sampling must be one of \('balanced', 'ind.*got 'mean'",
        ),
        ({"ensemble_size": 0}, "ensemble_size must be at least 1, got 0"),
        ({"in_keys": ("observation",)}, "in_keys must be those of the observation and the action"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CategoricalWorldModel(5, 1, **kwargs)


@pytest.mark.parametrize(
    ("row", "reads"),
    [
        ([0.5, 0.5, 0.0, 1.0, 0.0], r"\[0\.5, 0\.5, 0\.0, 1\.0, 0\.0\]"),
        ([1.0, 1.0, 0.0, 0.0, 0.0], r"\[1\.0, 1\.0, 0\.0, 0\.0, 0\.0\]"),
        ([0.0, 0.0, 0.0, 1.0, 0.0], r"\[0\.0, 0\.0, 0\.0, 1\.0, 0\.0\]"),
        ([2.0, -1.0, 0.0, 1.0, 0.0], r"\[2\.0, -1\.0, 0\.0, 1\.0, 0\.0\]"),
        ([math.nan, 0.0, 1.0, 1.0, 0.0], r"\[nan, 0\.0, 1\.0, 1\.0, 0\.0\]"),
    ],
)
def test_what_is_not_one_hot_is_named_and_nothing_is_taken_in(row, reads):
    model, row = make_model(), torch.tensor(row, dtype=torch.float64)
    count = model.action_statistics.count.clone()
    for key in ("observation", ("next", "observation")):
        td = transitions(6)
        td[key][3] = row
        with pytest.raises(ValueError, match=rf"must be one-hot, .*\(3, 2\); got {reads}"):
            model.update_normalizer(td)
        assert model.action_statistics.count == count
    td = transitions(6).exclude("next")
    td["observation"][3] = row
    with pytest.raises(ValueError, match="'observation' must be one-hot"):
        model(td)


def test_inputs_that_do_not_fit_are_named():
    model = make_model()
    td = transitions(6).exclude("next")
    with pytest.raises(ValueError, match=r"expects 5 features under 'observation', got .*\(6, 4\)"):
        model(td.clone().set("observation", torch.zeros(6, 4, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"has dtype torch.float64, 'observation' torch.int64"):
        model(td.clone().set("observation", td["observation"].long()))
    with pytest.raises(ValueError, match="reads 'action', which the tensordict does not hold"):
        model(td.exclude("action"))
