"""Losses and modules under arbitrary inputs: a finite result, or an error that says what is wrong.

Shapes and dtypes are refused by the loss or module itself; values too large for float32 pass
through it and are caught by the trainer's guard.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import MLP

from torchrl_mage import (
    GaussianEnsembleLoss,
    GaussianEnsembleWorldModel,
    MAGELoss,
    NetworkSoftUpdate,
    Normalizer,
)
from torchrl_mage.trainers import DivergenceError, DivergenceGuard

OBS, ACTION, MEMBERS = 3, 2, 2
FEATURES = {"observation": OBS, "action": ACTION, "next": OBS}
CLEAR = r"observation|action|expected|batch|dtype|shape|member|holds no"


def reward(observation, action, next_observation):
    return -next_observation.square().sum(-1, keepdim=True) - action.square().sum(-1, keepdim=True)


def make(sampling="balanced", **kwargs):
    torch.manual_seed(0)
    dynamics = GaussianEnsembleWorldModel(
        OBS, ACTION, ensemble_size=MEMBERS, num_cells=(8,), sampling=sampling
    )
    world_model = TensorDictSequential(
        dynamics,
        TensorDictModule(
            reward, ["observation", "action", ("next", "observation")], [("next", "reward")]
        ),
    )
    actor = TensorDictModule(
        nn.Sequential(MLP(OBS, ACTION, num_cells=[8]), nn.Tanh()), ["observation"], ["action"]
    )
    critics = [
        TensorDictModule(
            MLP(OBS + ACTION, 1, num_cells=[8]), ["observation", "action"], ["state_action_value"]
        )
        for _ in range(2)
    ]
    loss = MAGELoss(actor, critics, world_model, bounds=(-1.0, 1.0), **kwargs)
    loss.make_value_estimator(gamma=0.9)
    NetworkSoftUpdate(loss, ["actor_network", "qvalue_network"], tau=0.1)
    return dynamics, loss


@st.composite
def inputs(draw):
    """A tensordict of transitions, and whether its shapes and dtypes are right."""
    batch = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7]), max_size=3))
    scale = 10.0 ** draw(st.sampled_from([-30, -10, -1, 0, 0, 0, 1, 3, 10, 30]))
    dtype = draw(st.sampled_from([torch.float32] * 6 + [torch.float64, torch.float16, torch.int64]))
    extra = draw(st.sampled_from([0] * 8 + [1, -1]))  # a feature too many or too few
    missing = draw(st.sampled_from([None] * 8 + list(FEATURES)))
    layout = draw(st.sampled_from(["plain", "transposed", "strided", "expanded"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def tensor(size):
        shape = [*batch, size]
        if layout == "expanded" and batch:
            value = torch.randn(1, *shape[1:], generator=generator).expand(shape)
        elif layout == "strided":
            value = torch.randn(*shape[:-1], 2 * size, generator=generator)[..., ::2]
        elif layout == "transposed" and batch:
            value = torch.randn(size, *batch[1:], batch[0], generator=generator).transpose(0, -1)
        else:
            value = torch.randn(shape, generator=generator)
        return (value * scale).to(dtype)

    td = TensorDict(batch_size=batch)
    for name, size in FEATURES.items():
        if name != missing:
            td[(name, "observation") if name == "next" else name] = tensor(size + extra)
    proper = dtype == torch.float32 and not extra
    return td, proper, missing, scale


def finite_or_guarded(scale, **values):
    """Values of an ordinary scale stay finite; of the others the guard refuses what does not."""
    guard = DivergenceGuard({}, {})
    guard.watch(**{name: value for name, value in values.items() if value.numel()})
    if all(value.isfinite().all() for value in values.values()):
        guard.check(1)
        return
    assert not 1e-10 <= scale <= 1e3, "an ordinary input gave a value that is not finite"
    with pytest.raises(DivergenceError, match="step 1: training diverged"):
        guard.check(1)


def check_mage_loss(case, coeff, reduction):
    td, proper, missing, scale = case
    _, loss = make(gradient_coeff=coeff, reduction=reduction)
    before = td.clone()
    if (
        not proper
        or missing == "observation"
        or (not td.batch_size.numel() and reduction == "mean")
    ):
        with pytest.raises(ValueError, match=CLEAR):
            loss(td)
        return
    out = loss(td)
    assert all((td[key] == value).all() for key, value in before.items(True, True))
    total = out["loss_qvalue"].sum() + out["loss_actor"].sum()
    total.backward()
    gradients = torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None])
    finite_or_guarded(scale, **out.detach().to_dict(), gradients=gradients)
    if reduction == "none":
        assert out["loss_qvalue"].shape == td.shape


def check_ensemble_loss(case, per_member):
    td, proper, missing, scale = case
    dynamics, _ = make()
    loss = GaussianEnsembleLoss(dynamics, per_member=per_member)
    fits = not per_member or td.shape[:1] == (MEMBERS,)
    if not proper or missing or not fits or not td.batch_size.numel():
        with pytest.raises(ValueError, match=CLEAR):
            loss(td)
        return
    out = loss(td)
    out["loss_world_model"].backward()
    gradients = torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None])
    finite_or_guarded(scale, **out.detach().to_dict(), gradients=gradients)


def check_world_model(case, sampling):
    td, proper, missing, scale = case
    dynamics, _ = make(sampling)
    if not proper or missing in ("observation", "action"):
        with pytest.raises((ValueError, KeyError), match=CLEAR):
            dynamics(td.clone())
        return
    finite_or_guarded(scale, next=dynamics(td.clone())["next", "observation"].detach())
    mean, var = dynamics.predict(td["observation"], td["action"])
    assert mean.shape == var.shape == (MEMBERS, *td.shape, OBS)
    finite_or_guarded(scale, mean=mean.detach(), var=var.detach())


def check_normalizer(case):
    td, proper, missing, scale = case
    normalizer = Normalizer(OBS)
    if missing == "observation":
        with pytest.raises(ValueError, match="observation"):
            normalizer(td)
        return
    if td["observation"].shape[-1] != OBS:
        for use in (normalizer, lambda td: normalizer.update(td["observation"])):
            with pytest.raises(ValueError, match=CLEAR):
                use(td)
        return
    normalizer.update(td["observation"])
    if proper:
        finite_or_guarded(scale, out=normalizer(td)["normalized_observation"])


CHECKS = [
    lambda case: check_mage_loss(case, 1.0, "mean"),
    lambda case: check_mage_loss(case, 0.0, "sum"),
    lambda case: check_mage_loss(case, 1.0, "none"),
    lambda case: check_ensemble_loss(case, per_member=True),
    lambda case: check_ensemble_loss(case, per_member=False),
    lambda case: check_world_model(case, "balanced"),
    lambda case: check_world_model(case, "independent"),
    lambda case: check_world_model(case, "moments"),
    check_normalizer,
]


@pytest.mark.parametrize("check", CHECKS)
@given(case=inputs())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_finite_or_a_clear_error(check, case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@given(case=inputs())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_are_finite_or_a_clear_error(check, case):
    check(case)
