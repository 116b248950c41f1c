"""MAGESACLoss against soft actor-critic written plainly."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from objectives.test_contract import ACTION, OBS, Case
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Normal
from torchrl.data import Bounded

from torchrl_mage import MAGESACLoss

GAMMA, LMBDA = 0.9, 0.2


def problem(**kwargs):
    """A loss with temperature 0.3 and targets of their own."""
    case = Case("MAGE-SAC", alpha_init=0.3, loss_function="l2", **kwargs)
    torch.manual_seed(5)
    targets = case.loss.target_qvalue_network_params
    targets.data.apply_(lambda x: x.add_(0.1 * torch.randn_like(x)))
    return case


def policy(case, state):
    """A reparameterised action and its log-density, by the change of variables."""
    out = case.loss.actor_network[0](TensorDict(observation=state, batch_size=state.shape[:-1]))
    loc, scale = out["loc"], out["scale"]
    latent = Normal(loc, scale).rsample()
    action = latent.tanh()
    density = Normal(loc, scale).log_prob(latent) - (1 - action.square()).log()
    return action, density.sum(-1)


def networks(case, params):
    """Each critic as a function of state and action, with the parameters of one set."""
    critics = []
    for one in params.data.unbind(0):
        module = copy.deepcopy(case.loss.qvalue_network)
        one.to_module(module)
        critics.append(module.module.requires_grad_())
    return critics


def naive(case):
    """Both losses in one autograd graph each, drawing as the loss does; and their networks."""
    state = case.data[:, :OBS]
    critics = networks(case, case.loss.qvalue_network_params)
    targets = networks(case, case.loss.target_qvalue_network_params)
    drift, reward, ended = (module.module for module in case.model)
    torch.manual_seed(7)
    action, log_prob = policy(case, state)
    values = [critic(torch.cat([state, action], -1)).squeeze(-1) for critic in critics]
    actor_loss = (0.3 * log_prob - torch.minimum(*values)).mean()

    action = policy(case, state)[0].detach().requires_grad_()
    following = drift(state, action)
    next_action, next_log_prob = policy(case, following)
    inputs = torch.cat([following, next_action], -1)
    soft = torch.minimum(*[target(inputs).squeeze(-1) for target in targets]) - 0.3 * next_log_prob
    alive = (~ended(following)).squeeze(-1).to(state.dtype)
    target = reward(action, following).squeeze(-1) + GAMMA * alive * soft
    critic_loss = torch.zeros((), dtype=state.dtype)
    for critic in critics:
        delta = target - critic(torch.cat([state, action], -1)).squeeze(-1)
        (slope,) = torch.autograd.grad(delta.sum(), action, create_graph=True)
        critic_loss = critic_loss + (slope.square().sum(-1) + LMBDA * delta.square()).mean()
    return actor_loss, log_prob, critic_loss, critics, alive


def test_losses_and_gradients_equal_soft_actor_critic_written_plainly():
    case = problem()
    actor_loss, log_prob, critic_loss, critics, alive = naive(case)
    assert 0 < alive.mean() < 1, "the case needs ended and running states"
    out = case()
    torch.testing.assert_close(out["loss_actor"], actor_loss)
    torch.testing.assert_close(out["loss_qvalue"], critic_loss)
    torch.testing.assert_close(out["entropy"], -log_prob)

    expected = torch.autograd.grad(actor_loss, list(case.loss.actor_network.parameters()))
    found = torch.autograd.grad(out["loss_actor"], list(case.networks["loss_actor"].parameters()))
    torch.testing.assert_close(found, expected)
    parameters = list(case.networks["loss_qvalue"].parameters())
    found = torch.autograd.grad(out["loss_qvalue"], parameters)
    expected = [
        torch.autograd.grad(critic_loss, list(c.parameters()), retain_graph=True) for c in critics
    ]
    torch.testing.assert_close(
        found, tuple(torch.stack(pair) for pair in zip(*expected, strict=True))
    )


def test_the_entropy_of_the_next_state_is_part_of_the_targets_gradient():
    """At a constant critic and a reward of 0 the target is -gamma alpha log pi(a'|s') alone."""
    case = problem()
    for params in (case.loss.qvalue_network_params, case.loss.target_qvalue_network_params):
        params.data.apply_(lambda x: x.zero_())
    case.model[1].forward = lambda td: td.set(("next", "reward"), td["action"][..., :1] * 0)
    out = case()
    running = out["next_terminated"] == 0
    assert (out["action_gradient_error"][:, running] > 0).all()
    case.loss.log_alpha.data.fill_(-50.0)
    torch.testing.assert_close(case()["action_gradient_error"], 0 * out["action_gradient_error"])


def test_temperature_falls_while_the_entropy_is_above_its_target():
    case = Case("MAGE-SAC", target_entropy=-0.5)
    loss = case.loss.alpha_loss(torch.tensor([1.0, 2.0], dtype=torch.float64))
    loss.backward()
    # d/d log alpha of log alpha * mean(entropy + 0.5)
    assert case.loss.log_alpha.grad.item() == 2.0
    case.loss.log_alpha.grad = None
    case.loss.alpha_loss(torch.tensor([-1.5], dtype=torch.float64)).backward()
    assert case.loss.log_alpha.grad.item() == -1.0


@pytest.mark.parametrize(("name", "nats"), [("auto", -ACTION), ("half", -ACTION / 2)])
def test_target_entropy_by_the_number_of_actions(name, nats):
    spec = Bounded(-1.0, 1.0, (ACTION,), dtype=torch.float64)
    case = Case("MAGE-SAC", bounds=None, action_spec=spec, target_entropy=name)
    assert case.loss.target_entropy == nats
    with pytest.raises(ValueError, match=f"'{name}' goes by .*: pass action_spec"):
        Case("MAGE-SAC", target_entropy=name)


def test_fixed_temperature():
    case = Case("MAGE-SAC, fixed temperature")
    out = case()
    assert out["loss_alpha"] == 0
    torch.testing.assert_close(out["alpha"], torch.tensor(0.3, dtype=torch.float64))
    assert "log_alpha" not in dict(case.loss.named_parameters())
    assert "log_alpha" in case.loss.state_dict()


def test_reset_takes_the_temperature_back():
    case = problem()
    case.loss.log_alpha.data.fill_(2.0)
    case.loss.reset_parameters_recursive()
    assert case.loss.log_alpha.item() == pytest.approx(math.log(0.3))


def test_samples_although_a_loss_module_is_deterministic():
    case = Case("MAGE-SAC")
    first, second = case.loss(case.td()), case.loss(case.td())
    assert not torch.allclose(first["pred_value"], second["pred_value"])


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_temperature_out_of_range_is_named(alpha):
    with pytest.raises(
        ValueError, match=f"alpha_init must be a finite positive number, got {alpha}"
    ):
        Case("MAGE-SAC", alpha_init=alpha)


def test_target_entropy_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="target_entropy must be a finite number, got nan"):
        Case("MAGE-SAC", target_entropy=math.nan)
    with pytest.raises(ValueError, match="must be a number, 'auto' or 'half', got 'none'"):
        Case("MAGE-SAC", target_entropy="none")


def test_a_deterministic_actor_is_refused():
    actor = TensorDictModule(nn.Linear(OBS, ACTION), ["observation"], ["action"])
    case = Case("MAGE-SAC")
    with pytest.raises(ValueError, match="stochastic actor, got a TensorDictModule: wrap"):
        MAGESACLoss(actor, case.loss.qvalue_network, case.model, bounds=(-1.0, 1.0))
