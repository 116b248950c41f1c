"""bfloat16 products by autocast: what stays float32, how far the gradients are off."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate

from torchrl_mage import (
    GaussianEnsembleLoss,
    GaussianEnsembleWorldModel,
    MAGELoss,
    MAGESACLoss,
    Normalizer,
    TaylorTDLoss,
    get_task,
)
from torchrl_mage.modules import critic, deterministic_actor, stochastic_actor
from torchrl_mage.trainers import in_precision

UNIT_ROUNDOFF = 2.0**-8  # of bfloat16's 8 significant bits
CPU = torch.device("cpu")
LOSSES = (MAGELoss, MAGESACLoss, TaylorTDLoss)


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def gradient(parameters):
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def relative_error(rough, exact):
    return ((rough - exact).norm() / exact.norm()).item()


def agent_loss(kind, num_cells=(32, 32)):
    normalizer, task = Normalizer(3), get_task("Pendulum-v1")
    spec = Bounded(-1, 1, (1,))
    make = stochastic_actor if kind is MAGESACLoss else deterministic_actor
    dynamics = GaussianEnsembleWorldModel(3, 1, ensemble_size=2, num_cells=num_cells)
    model = TensorDictSequential(
        dynamics,
        task.reward,
        normalizer.on(("next", "observation"), ("next", "normalized_observation")),
    )
    critics = [critic(3, 1, num_cells) for _ in range(2)]
    loss = kind(make(3, spec, num_cells), critics, model, action_spec=spec)
    loss.make_value_estimator(gamma=0.99)
    SoftUpdate(loss, tau=0.005)
    states = normalizer(TensorDict(observation=torch.randn(64, 3), batch_size=[64]))
    return loss, states


@pytest.mark.parametrize("kind", LOSSES)
def test_what_a_loss_returns_under_autocast_is_float32(kind):
    loss, states = agent_loss(kind)
    with bf16():
        out = loss(states)
    assert {value.dtype for value in out.values()} == {torch.float32}
    out["loss_qvalue"].backward()
    assert all(p.grad.dtype == torch.float32 for p in loss.qvalue_network_params.parameters())


@pytest.mark.parametrize("kind", LOSSES)
def test_the_critics_gradient_is_off_by_bfloat16s_rounding(kind):
    loss, states = agent_loss(kind)
    parameters = list(loss.qvalue_network_params.parameters())
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value, _ = loss.value_loss(states)
        loss.zero_grad()
        value.backward()
        found.append(gradient(parameters))
    # Two rounded operands in each of the two hidden layers of model, actor, target critic and
    # critic; forwards, backwards in the action, backwards in the parameters.
    bound = 2 * 2 * 4 * 3 * UNIT_ROUNDOFF
    assert 0 < relative_error(found[1], found[0]) < bound


def test_the_likelihoods_gradient_is_off_by_bfloat16s_rounding():
    model = GaussianEnsembleWorldModel(3, 1, ensemble_size=2, num_cells=(32, 32))
    nll = GaussianEnsembleLoss(model)
    data = TensorDict(
        observation=torch.randn(2, 64, 3), action=torch.rand(2, 64, 1), batch_size=[2, 64]
    )
    data["next", "observation"] = data["observation"] + 0.1 * torch.randn(2, 64, 3)
    model.update_normalizer(data.reshape(-1))
    found = []
    for precision in ("float32", "bf16"):
        loss, metadata = in_precision(nll.nll, precision, CPU)(data)
        assert loss.dtype == metadata["mean_squared_error"].dtype == torch.float32
        nll.zero_grad()
        loss.backward()
        found.append(gradient(model.parameters()))
    assert 0 < relative_error(found[1], found[0]) < 2 * 2 * 2 * UNIT_ROUNDOFF


def test_a_value_keeps_its_digits():
    """An affine critic with a bias of -300, which bfloat16 would round to -300 or -302."""
    q = critic(1, 1, [4], in_key="observation")
    torch.nn.init.zeros_(q.module[-1].weight)
    torch.nn.init.constant_(q.module[-1].bias, -300.7)
    state = TensorDict(observation=torch.ones(5, 1), action=torch.ones(5, 1))
    with bf16():
        value = q(state)["state_action_value"]
    torch.testing.assert_close(value, torch.full((5, 1), -300.7), rtol=0, atol=0)


@pytest.mark.slow
def test_a_compiled_loss_under_autocast_is_the_eager_one():
    loss, states = agent_loss(MAGELoss)
    bound = 2 * 2 * 4 * 3 * UNIT_ROUNDOFF
    parameters, found = list(loss.qvalue_network_params.parameters()), []
    function = in_precision(loss.value_loss, "bf16", CPU)
    loss.policy_noise = 0.0
    loss.world_model[0].sampling = "mean"  # without draws, which compilation orders otherwise
    for call in (function, torch.compile(function, fullgraph=True, dynamic=False)):
        value, _ = call(states)
        loss.zero_grad()
        value.backward()
        found.append(gradient(parameters))
    assert relative_error(found[1], found[0]) < bound


def test_without_fast_products_a_run_stays_in_float32_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.warns(UserWarning, match="no fast bfloat16 products here.*stays in float32"):
        assert in_precision(torch.sin, "bf16", CPU) is torch.sin


@pytest.mark.parametrize("fast", [True, False])
def test_automatic_precision_is_that_which_is_fast_and_says_nothing(monkeypatch, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast})
    product = in_precision(torch.mm, "auto", CPU)(torch.ones(2, 2), torch.ones(2, 2))
    assert product.dtype == (torch.bfloat16 if fast else torch.float32)
