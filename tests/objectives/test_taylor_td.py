"""TaylorTDLoss against the expected TD update, where that is known exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from objectives.test_contract import Case
from objectives.test_mage import GAMMA, linear_problem
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from torchrl_mage import MAGELoss, TaylorTDLoss
from torchrl_mage.functional import taylor_td_loss

LAMBDA_A, LAMBDA_S = 0.3, 0.05


def test_expected_update_is_exact_where_everything_is_linear():
    """``E[delta grad Q]`` over signs of the perturbation, which have its covariance.

    With a linear TD error and critic the expansion leaves nothing out.
    """
    torch.manual_seed(0)
    dtype = torch.float64
    weight = torch.randn(3, dtype=dtype, requires_grad=True)  # Q = w . [a, s]
    target = torch.randn(3, dtype=dtype)  # y = t . [a, s]
    inputs = torch.randn(3, dtype=dtype)
    scale = torch.tensor([LAMBDA_A, LAMBDA_S, LAMBDA_S], dtype=dtype).sqrt()
    expected = torch.zeros(3, dtype=dtype)
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        x = inputs + scale * torch.tensor(signs, dtype=dtype)
        expected += ((target - weight.detach()) @ x) * x / 8

    slope = (target - weight)[None, None]
    loss = taylor_td_loss(
        (slope @ inputs),
        slope[..., :1],
        slope[..., 1:],
        action_variance=LAMBDA_A,
        state_variance=LAMBDA_S,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    torch.testing.assert_close(-gradient, expected)


def quadratic_loss(**kwargs):
    """Linear dynamics and policy, quadratic reward and critics; see ``linear_problem``."""
    mage, drift, push, gain, forms = linear_problem()
    loss = TaylorTDLoss(
        mage.actor_network,
        [
            TensorDictModule(
                type(mage.qvalue_network.module)(f),
                ["observation", "action"],
                ["state_action_value"],
            )
            for f in forms
        ],
        mage.world_model,
        bounds=(-1e3, 1e3),
        policy_noise=0.0,
        delay_actor=False,
        delay_qvalue=False,
        **kwargs,
    )
    loss.make_value_estimator(gamma=GAMMA)
    return loss, drift, push, gain, forms


def test_gradients_in_state_and_action_equal_the_closed_form():
    """A linear-quadratic problem: all of the loss by hand.

    With ``x = [s, a]``, ``N = M + M^T``, ``z = dQ/dx' = N x'`` at the smaller critic:
    ``dy/da = -0.2 a - 2 B s' + gamma B (z_s + K z_a)`` and, the action held fixed,
    ``dy/ds = -2 A s' + gamma A (z_s + K z_a)``.
    """
    loss, drift, push, gain, forms = quadratic_loss(
        action_variance=LAMBDA_A, state_variance=LAMBDA_S
    )
    state = torch.randn(7, len(drift), dtype=torch.float64)
    value = loss.value_loss(TensorDict(observation=state, batch_size=[7]))[0]
    symmetric, size = forms + forms.mT, len(drift)
    expected = torch.zeros((), dtype=torch.float64)
    for s in state:
        a = s @ gain
        following = s @ drift + a @ push
        x, x_next = torch.cat([s, a]), torch.cat([following, following @ gain])
        values = torch.stack([x_next @ form @ x_next for form in forms])
        z = symmetric[values.argmin()] @ x_next
        y = -following.square().sum() - 0.1 * a.square().sum() + GAMMA * values.min()
        carried = GAMMA * (z[:size] + gain @ z[size:]) - 2 * following
        slope_a, slope_s = push @ carried - 0.2 * a, drift @ carried
        for form, double in zip(forms, symmetric, strict=True):
            delta = y - x @ form @ x
            own = double @ x
            expected += 0.5 * delta**2
            expected += 0.5 * LAMBDA_A * (slope_a - own[size:]).square().sum()
            expected += 0.5 * LAMBDA_S * (slope_s - own[:size]).square().sum()
    torch.testing.assert_close(value, expected / 7)


def test_without_state_it_is_mage_with_squares():
    """``1/2 (delta^2 + lambda_a |grad delta|^2)`` is MAGE's l2 loss in other words."""
    taylor = Case("Taylor TD", action_variance=LAMBDA_A)
    mage = Case("MAGE", loss_function="l2", lmbda=0.5, gradient_coeff=LAMBDA_A / 2)
    torch.testing.assert_close(taylor()["loss_qvalue"], mage()["loss_qvalue"])
    torch.testing.assert_close(taylor()["loss_actor"], mage()["loss_actor"])


def test_no_variance_is_the_td_error():
    out = Case("Taylor TD", action_variance=0.0)()
    expected = 0.5 * out["td_error"].square().sum(0).mean()
    torch.testing.assert_close(out["loss_qvalue"], expected)


def test_no_variance_needs_no_gradient():
    """A model cut from the action is refused, with this loss's remedy, only if it matters."""
    case = Case("Taylor TD", action_variance=0.0)
    cut = TensorDictModule(
        lambda s, a: (s + a.sum(-1, keepdim=True)).detach(),
        ["observation", "action"],
        [("next", "observation")],
    )
    case.model[0] = cut
    assert case()["loss_qvalue"].isfinite()
    case = Case("Taylor TD")
    case.model[0] = cut
    with pytest.raises(ValueError, match="set both variances to 0 for the TD error alone"):
        case()


def test_a_state_of_several_entries_has_no_gradient_of_its_own():
    actor = TensorDictModule(nn.Linear(2, 1), ["normalized"], ["action"])
    critic = TensorDictModule(
        lambda s, a: (s * a).sum(-1, keepdim=True), ["normalized", "action"], ["state_action_value"]
    )
    world_model = TensorDictSequential(
        TensorDictModule(lambda s, a: s + a, ["observation", "action"], [("next", "observation")]),
        TensorDictModule(lambda s: s / 2, [("next", "observation")], [("next", "normalized")]),
        TensorDictModule(lambda a: a * 0, ["action"], [("next", "reward")]),
    )
    td = TensorDict(observation=torch.randn(3, 2), normalized=torch.randn(3, 2), batch_size=[3])
    kwargs = {"bounds": (-1.0, 1.0), "delay_actor": False, "delay_qvalue": False}
    assert TaylorTDLoss(actor, critic, world_model, **kwargs)(td.clone())["td_error"].shape == (
        2,
        3,
    )
    loss = TaylorTDLoss(actor, critic, world_model, state_variance=0.1, **kwargs)
    with pytest.raises(ValueError, match=r"one state entry, .* \['normalized', 'observation'\]"):
        loss(td)


@pytest.mark.parametrize("name", ["action_variance", "state_variance"])
def test_negative_variances_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0, got -1"):
        Case("Taylor TD", **{name: -1.0})


def test_it_is_a_mage_loss():
    """So that whoever takes a MAGELoss takes it too."""
    assert issubclass(TaylorTDLoss, MAGELoss)


def test_pixels_are_no_vector_to_perturb():
    """A state ``[*B, 3, 8, 8]``: the action may be perturbed, the state is refused by name."""
    flat = 3 * 8 * 8

    def dynamics(pixels, action):
        return pixels + action[..., None, None]

    actor = TensorDictModule(
        nn.Sequential(nn.Flatten(-3), nn.Linear(flat, 1)), ["pixels"], ["action"]
    )
    critic = TensorDictModule(
        lambda s, a: s.flatten(-3).sum(-1, keepdim=True) * a,
        ["pixels", "action"],
        ["state_action_value"],
    )
    world_model = TensorDictSequential(
        TensorDictModule(dynamics, ["pixels", "action"], [("next", "pixels")]),
        TensorDictModule(lambda a: a * 0, ["action"], [("next", "reward")]),
    )
    td = TensorDict(pixels=torch.randn(5, 3, 8, 8), batch_size=[5])
    kwargs = {"bounds": (-1.0, 1.0), "delay_actor": False, "delay_qvalue": False}
    assert TaylorTDLoss(actor, critic, world_model, **kwargs)(td)["td_error"].shape == (2, 5)
    loss = TaylorTDLoss(actor, critic, world_model, state_variance=0.1, **kwargs)
    with pytest.raises(ValueError, match=r"one vector, 'pixels' has the features \[3, 8, 8\]"):
        loss(td)
