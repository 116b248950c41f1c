"""The ensemble: one member's work, every mode's distribution, derivatives, shapes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn

from torchrl_mage import GaussianEnsembleWorldModel

OBS, ACTION = 3, 2


def make_model(ensemble_size=4, **kwargs):
    kwargs = {"num_cells": (8, 8), "dtype": torch.float64} | kwargs
    model = GaussianEnsembleWorldModel(OBS, ACTION, ensemble_size=ensemble_size, **kwargs)
    with torch.no_grad():  # biases and statistics that a mix-up would show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    data = transitions(50, dtype=kwargs["dtype"])
    model.update_normalizer(data)
    return model


def transitions(*shape, dtype=torch.float64):
    observation = 2 + 3 * torch.randn(*shape, OBS, dtype=dtype)
    return TensorDict(
        observation=observation,
        action=torch.rand(*shape, ACTION, dtype=dtype),
        next=TensorDict(
            observation=observation + 0.5 * torch.randn(*shape, OBS, dtype=dtype) - 1,
            batch_size=shape,
        ),
        batch_size=shape,
    )


def separate_network(model, member):
    """Member ``member`` as an ordinary network of ``nn.Linear`` layers, in raw units."""
    layers = []
    for layer in model.network:
        if isinstance(layer, nn.SiLU):
            layers.append(nn.SiLU())
            continue
        linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2], dtype=layer.weight.dtype)
        linear.weight.data = layer.weight.data[member].T.clone()
        linear.bias.data = layer.bias.data[member, 0].clone()
        layers.append(linear)
    network = nn.Sequential(*layers)

    def gaussian(observation, action):
        scaled = [
            (value - statistics.mean) / statistics.std
            for value, statistics in (
                (observation, model.observation_statistics),
                (action, model.action_statistics),
            )
        ]
        mean, raw = network(torch.cat(scaled, -1)).chunk(2, -1)
        return mean, -5 + 4 / (1 + (-raw).exp())

    return gaussian


def test_predict_equals_separate_networks():
    model = make_model()
    td = transitions(5, 7)
    mean, var = model.predict(td["observation"], td["action"])
    assert mean.shape == var.shape == (4, 5, 7, OBS)
    difference = model.difference_statistics
    for member in range(4):
        mu, log_var = separate_network(model, member)(td["observation"], td["action"])
        expected = td["observation"] + difference.mean + difference.std * mu
        torch.testing.assert_close(mean[member], expected)
        torch.testing.assert_close(var[member], difference.std**2 * log_var.exp())


def test_statistics_are_those_of_all_transitions_passed():
    model = GaussianEnsembleWorldModel(OBS, ACTION, num_cells=(4,), dtype=torch.float64)
    data = transitions(60)
    for part in data.split([1, 9, 50]):
        model.update_normalizer(part)
    difference = data["next", "observation"] - data["observation"]
    for statistics, values in (
        (model.observation_statistics, data["observation"]),
        (model.action_statistics, data["action"]),
        (model.difference_statistics, difference),
    ):
        torch.testing.assert_close(statistics.mean, values.mean(0))
        torch.testing.assert_close(statistics.std, values.std(0, correction=0))
        assert statistics.count == 60
    assert not any(p is b for p in model.parameters() for b in model.buffers())
    assert "difference_statistics.std" in model.state_dict()


def test_constant_features_are_centred_only():
    model = GaussianEnsembleWorldModel(OBS, ACTION, num_cells=(4,))
    data = transitions(20, dtype=torch.float32)
    data["observation"][:, 1] = 7.0
    model.update_normalizer(data)
    torch.testing.assert_close(model.observation_statistics.std[1], torch.tensor(1.0))
    normalized = model.observation_statistics.normalize(data["observation"])
    assert torch.isfinite(normalized).all()
    torch.testing.assert_close(normalized[:, 1], torch.zeros(20), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", ["balanced", "independent", "moments", "mean"])
def test_what_always_changes_alike_is_foreseen_without_noise(sampling):
    model = GaussianEnsembleWorldModel(OBS, ACTION, num_cells=(4,), sampling=sampling)
    data = transitions(20, dtype=torch.float32)
    data["next", "observation"][:, 1] = data["observation"][:, 1] + 0.5
    model.update_normalizer(data[:1])
    assert not model.difference_statistics.constant.any(), "one transition shows no constancy"
    model.update_normalizer(data[1:])
    assert model.difference_statistics.constant.tolist() == [i == 1 for i in range(OBS)]
    state = data.select("observation", "action").clone()
    difference = model(state)["next", "observation"] - state["observation"]
    torch.testing.assert_close(difference[:, 1], torch.full((20,), 0.5), rtol=0, atol=1e-5)
    assert difference[:, 0].std() > 1e-3


@pytest.mark.parametrize("sampling", ["balanced", "independent", "moments", "mean"])
@given(shape=st.lists(st.integers(1, 5), max_size=3), ensemble_size=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_any_batch_shape_and_ensemble_size(sampling, shape, ensemble_size):
    model = make_model(ensemble_size, sampling=sampling)
    td = transitions(*shape).exclude("next")
    out = model(td.clone())
    assert out["next", "observation"].shape == (*shape, OBS)
    assert torch.isfinite(out["next", "observation"]).all()
    assert set(out.keys(True, True)) == {"observation", "action", ("next", "observation")}
    torch.testing.assert_close(out["observation"], td["observation"])


def members_drawn(model, batch):
    """Which member each element got, told by members whose mean is their own number."""
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
        model.network[-1].bias[:, 0, :OBS] = torch.arange(model.ensemble_size).double()[:, None]
        model.network[-1].bias[:, 0, OBS:] = -50  # the smallest variance, exp(-5)
    model.difference_statistics.std.fill_(1.0)
    model.difference_statistics.mean.zero_()
    td = TensorDict(
        observation=torch.zeros(batch, OBS, dtype=torch.float64),
        action=torch.zeros(batch, ACTION, dtype=torch.float64),
        batch_size=[batch],
    )
    # Three features of noise std 0.08 about an integer: rounding fails once in 1e8.
    return model(td)["next", "observation"].mean(-1).round().long()


@pytest.mark.parametrize(("batch", "ensemble_size"), [(24, 4), (25, 4), (3, 4), (1, 4), (7, 1)])
def test_balanced_shares_differ_by_one_at_most(batch, ensemble_size):
    model = make_model(ensemble_size)
    for _ in range(20):
        share = members_drawn(model, batch).bincount(minlength=ensemble_size)
        assert share.sum() == batch
        assert share.max() - share.min() <= 1
        assert share.max() - share.min() == (batch % ensemble_size != 0)


@pytest.mark.parametrize("sampling", ["balanced", "independent"])
@pytest.mark.parametrize("batch", [8, 9, 1])
def test_every_element_gets_every_member_equally_often(sampling, batch):
    """Chi-square of the first element's member over 2,000 calls: false alarms once in 1e6."""
    model = make_model(4, sampling=sampling)
    drawn = torch.stack([members_drawn(model, batch)[0] for _ in range(2000)])
    counts = drawn.bincount(minlength=4).double()
    chi_square = ((counts - 500).square() / 500).sum()
    assert chi_square < 30.66  # P(chi^2_3 > 30.66) = 1e-6


def test_independent_draws_are_not_balanced():
    """Group sizes of 64 i.i.d. draws over 4 members vary; all equal has P = 0.9 %."""
    model = make_model(4, sampling="independent")
    sizes = torch.stack([members_drawn(model, 64).bincount(minlength=4) for _ in range(10)])
    assert (sizes != 16).any()  # false alarms: 0.009^10


@pytest.mark.parametrize("sampling", ["balanced", "independent", "moments"])
def test_samples_have_the_mixtures_moments(sampling):
    """Mean and variance of 40,000 draws within 5 standard errors: false alarms < 1e-5."""
    model = make_model(4, sampling=sampling)
    state = transitions(1).exclude("next")
    mean, var = model.predict(state["observation"], state["action"])
    mixture_mean, mixture_var = (
        mean.mean(0)[0],
        (var + mean.square()).mean(0)[0] - mean.mean(0)[0].square(),
    )
    count = 40_000
    draws = model(state.expand(count).clone())["next", "observation"]
    # Balanced members make the mean more exact than independent ones, never less.
    standard_error = (mixture_var / count).sqrt()
    assert ((draws.mean(0) - mixture_mean).abs() < 5 * standard_error).all()
    centred = (draws - mixture_mean).square()
    assert ((draws.var(0) - mixture_var).abs() < 5 * centred.std(0) / math.sqrt(count)).all()


def test_mean_mode_is_the_mean_of_the_members():
    model = make_model(4, sampling="mean")
    td = transitions(6).exclude("next")
    expected = model.predict(td["observation"], td["action"])[0].mean(0)
    torch.testing.assert_close(model(td)["next", "observation"], expected)


def test_a_given_member_is_used():
    model = make_model(4)
    td = transitions(9).exclude("next")
    member = torch.tensor([3, 3, 0, 1, 3, 2, 0, 3, 3])
    mean, var = model.predict(td["observation"], td["action"])
    torch.manual_seed(1)
    out = model(td.clone().set("ensemble_member", member[:, None]))["next", "observation"]
    torch.manual_seed(1)
    noise = torch.randn(9, OBS, dtype=torch.float64)
    expected = mean[member, range(9)] + var[member, range(9)].sqrt() * noise
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("sampling", ["balanced", "independent", "moments", "mean"])
def test_derivatives_equal_finite_differences(sampling):
    model = make_model(3, sampling=sampling)
    td = transitions(7)

    def sample(observation, action):
        torch.manual_seed(3)  # the same members and noise for every evaluation
        inputs = TensorDict(observation=observation, action=action, batch_size=[7])
        return model(inputs)["next", "observation"]

    inputs = [td[key].clone().requires_grad_() for key in ("observation", "action")]
    assert torch.autograd.gradcheck(sample, inputs)
    assert torch.autograd.gradgradcheck(sample, inputs)


def test_one_members_work_per_sample():
    model = make_model(8)
    rows = []
    model.network.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape))
    model(transitions(1024))
    model(transitions(1025))
    assert rows == [(8, 128, OBS + ACTION), (8, 129, OBS + ACTION)]


def test_balanced_compiles_in_one_graph():
    model = make_model(4, dtype=torch.float32, sampling="balanced")
    td = transitions(10, dtype=torch.float32).exclude("next")
    # aot_eager keeps eager's kernels and random numbers: what is tested is the one graph.
    compiled = torch.compile(
        lambda td: model(td)["next", "observation"], backend="aot_eager", fullgraph=True
    )
    torch.manual_seed(0)
    eager = model(td.clone())["next", "observation"]
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(td.clone()), eager)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ensemble_size": 0}, "ensemble_size must be at least 1, got 0"),
        ({"num_cells": (8, 0)}, "num_cells must be at least 1, got 0"),
        ({"sampling": "nearest"}, "sampling must be one of .*'balanced'.*got 'nearest'"),
        ({"log_var_bounds": (1.0, -1.0)}, r"log_var_bounds must be \(low, high\)"),
        ({"in_keys": ("observation",)}, "in_keys must be"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GaussianEnsembleWorldModel(OBS, ACTION, **kwargs)


@pytest.mark.parametrize("sampling", ["balanced", "independent", "moments", "mean"])
def test_an_empty_batch_is_an_empty_batch(sampling):
    out = make_model(3, sampling=sampling)(transitions(0).exclude("next"))
    assert out["next", "observation"].shape == (0, OBS)


def test_wrong_dtype_and_member_are_named():
    model = make_model(3)
    with pytest.raises(
        ValueError, match="world model has dtype torch.float64, 'observation' torch.f"
    ):
        model(transitions(5, dtype=torch.float32).exclude("next"))
    td = transitions(2).exclude("next").set("ensemble_member", torch.tensor([[0], [7]]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\), got values from 0 to 7"):
        model(td)


def test_wrong_feature_count_is_named():
    model = make_model()
    td = transitions(5).exclude("next")
    td["action"] = td["action"][:, :1]
    with pytest.raises(ValueError, match=r"expects 2 features under 'action', got shape \(5, 1\)"):
        model(td)


def test_transitions_that_do_not_belong_together_leave_the_statistics_alone():
    model = make_model()
    before = {name: value.clone() for name, value in model.named_buffers()}
    for key, shape in (
        (("next", "observation"), (5, OBS - 1)),
        (("next", "observation"), (1, OBS)),
        ("action", (5, ACTION + 1)),
        ("action", (1, ACTION)),
    ):
        td = TensorDict(transitions(5).to_dict())
        td[key] = torch.zeros(shape, dtype=torch.float64)
        with pytest.raises(ValueError, match="do not belong together|features under 'action'"):
            model.update_normalizer(td)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    td = TensorDict(observation=torch.zeros(5, OBS).double(), action=torch.zeros(ACTION).double())
    with pytest.raises(ValueError, match=r"observation \(5, 3\), action \(2,\)"):
        model(td)


def test_calls_by_keyword_and_position_equal_the_call_by_tensordict():
    model = make_model(sampling="mean")
    td = transitions(5).exclude("next")
    observation, action = td["observation"], td["action"]
    expected = model(td)["next", "observation"]
    torch.testing.assert_close(model(observation=observation, action=action), expected)
    torch.testing.assert_close(model(observation, action), expected)


def test_custom_keys():
    model = GaussianEnsembleWorldModel(
        OBS,
        ACTION,
        num_cells=(4,),
        in_keys=(("agent", "state"), "push"),
        out_keys=(("next", "agent", "state"),),
        dtype=torch.float64,
    )
    td = TensorDict(
        {("agent", "state"): torch.zeros(5, OBS).double(), "push": torch.zeros(5, ACTION).double()},
        [5],
    )
    assert model(td)["next", "agent", "state"].shape == (5, OBS)


def test_unsigned_integers_do_not_wrap_around():
    """Differences of -1 and -3; as bytes they would be 255 and 253."""
    model = GaussianEnsembleWorldModel(1, 1, num_cells=(4,))
    data = TensorDict(
        {
            "observation": torch.tensor([[10], [20]], dtype=torch.uint8),
            "action": torch.tensor([[1], [3]], dtype=torch.uint8),
            ("next", "observation"): torch.tensor([[9], [17]], dtype=torch.uint8),
        },
        [2],
    )
    model.update_normalizer(data)
    for statistics, mean, std in (
        (model.observation_statistics, 15.0, 5.0),
        (model.action_statistics, 2.0, 1.0),
        (model.difference_statistics, -2.0, 1.0),
    ):
        assert (statistics.mean.item(), statistics.std.item()) == (mean, std)
    target = model.normalized_difference(data["observation"], data["next", "observation"])
    assert target.tolist() == [[1.0], [-1.0]]


def test_a_missing_entry_is_named():
    model = GaussianEnsembleWorldModel(
        OBS, ACTION, num_cells=(4,), in_keys=(("agent", "state"), "action")
    )
    there = r"which the tensordict does not hold; its keys are \[.*'action'.*'observation'"
    for use in (model, model.update_normalizer):
        with pytest.raises(
            ValueError, match=rf"the world model reads \('agent', 'state'\), {there}"
        ):
            use(transitions(4, dtype=torch.float32))
    model = GaussianEnsembleWorldModel(OBS, ACTION, num_cells=(4,))
    with pytest.raises(ValueError, match=r"the world model reads \('next', 'observation'\), which"):
        model.update_normalizer(
            transitions(4, dtype=torch.float32).exclude(("next", "observation"))
        )
