"""MAGELoss against plain autograd, closed forms and finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from naive import actor_loss as naive_actor_loss
from naive import critic_loss as naive_critic_loss
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.modules import MLP
from torchrl.objectives import SoftUpdate

from torchrl_mage import GaussianEnsembleWorldModel, MAGELoss, NetworkSoftUpdate
from torchrl_mage.modules import xavier_mlp

OBS, ACTION, BATCH, GAMMA = 4, 2, 12, 0.9


def reward_fn(observation, action, next_observation):
    pull = (next_observation * observation).sum(-1, keepdim=True).tanh()
    return pull - action.square().sum(-1, keepdim=True)


def terminated_fn(next_observation):
    return next_observation[..., :1] > 0.5


class Problem:
    """A loss in float64 and the plain modules it is made of."""

    def __init__(self, termination=True, dynamics=None, seed=0, critic=None, **kwargs):
        torch.manual_seed(seed)
        make = {"activation_class": nn.SiLU, "num_cells": [16, 16]}
        self.actor_net = nn.Sequential(MLP(OBS, ACTION, **make), nn.Tanh()).double()
        self.critic_nets = [
            MLP(OBS + ACTION, 1, **make | (critic or {})).double() for _ in range(2)
        ]
        self.dynamics = dynamics or GaussianEnsembleWorldModel(
            OBS, ACTION, ensemble_size=3, num_cells=(16, 16), sampling="mean", dtype=torch.float64
        )
        parts = [
            self.dynamics,
            TensorDictModule(
                reward_fn,
                in_keys=["observation", "action", ("next", "observation")],
                out_keys=[("next", "reward")],
            ),
        ]
        if termination:
            parts.append(
                TensorDictModule(
                    terminated_fn,
                    in_keys=[("next", "observation")],
                    out_keys=[("next", "terminated")],
                )
            )
        self.actor = TensorDictModule(self.actor_net, in_keys=["observation"], out_keys=["action"])
        critics = [
            TensorDictModule(
                net, in_keys=["observation", "action"], out_keys=["state_action_value"]
            )
            for net in self.critic_nets
        ]
        self.world_model = TensorDictSequential(*parts)
        kwargs = {"bounds": (-1.0, 1.0), "policy_noise": 0.0} | kwargs
        self.loss = MAGELoss(self.actor, critics, self.world_model, **kwargs)
        self.loss.make_value_estimator(gamma=GAMMA)
        if self.loss.delay_actor or self.loss.delay_qvalue:
            SoftUpdate(self.loss, tau=0.005)
        if self.loss.delay_actor and self.loss.delay_qvalue:
            # Targets of their own, so that a mix-up of online and target networks shows.
            for params in (
                self.loss.target_actor_network_params,
                self.loss.target_qvalue_network_params,
            ):
                params.data.apply_(lambda x: x.add_(0.05 * torch.randn_like(x)))
        self.target_actor = copy.deepcopy(self.actor_net)
        self.loss.target_actor_network_params.data.to_module(
            wrapped := TensorDictModule(self.target_actor, ["observation"], ["action"])
        )
        self.target_critics = []
        for i in range(2):
            net = copy.deepcopy(self.critic_nets[i])
            wrapped = TensorDictModule(net, ["observation", "action"], ["state_action_value"])
            self.loss.target_qvalue_network_params.data[i].to_module(wrapped)
            self.target_critics.append(net)
        self.state = torch.randn(BATCH, OBS, dtype=torch.float64)

    def next_state(self, state, action):
        td = TensorDict(observation=state, action=action, batch_size=state.shape[:-1])
        return self.dynamics(td)["next", "observation"]

    def td(self, *shape):
        shape = shape or (BATCH,)
        return TensorDict(observation=self.state.reshape(*shape, OBS), batch_size=shape)

    def naive(self, termination=True, target_noise=0.0, **kwargs):
        """The naive loss and its gradient for each critic's parameters, stacked."""
        critics = [copy.deepcopy(net) for net in self.critic_nets]
        for net, params in zip(
            critics, self.loss.qvalue_network_params.data.unbind(0), strict=True
        ):
            params.to_module(TensorDictModule(net, ["observation", "action"], ["x"]))
            net.requires_grad_()
        value = naive_critic_loss(
            self.state,
            self.actor_net,
            self.target_actor,
            critics,
            self.target_critics,
            self.next_state,
            reward_fn,
            terminated_fn if termination else lambda s: torch.zeros_like(s[..., :1], dtype=bool),
            torch.as_tensor(target_noise),
            gamma=GAMMA,
            **kwargs,
        )
        gradients = [
            torch.autograd.grad(value, list(net.parameters()), retain_graph=True) for net in critics
        ]
        return value.detach(), [torch.stack(pair) for pair in zip(*gradients, strict=True)]


def grads(params):
    return [p.grad for p in params.values(True, True)]


@pytest.mark.parametrize("termination", [True, False])
@pytest.mark.parametrize("lmbda", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("loss_function", ["l2", "smooth_l1"])
def test_critic_loss_and_gradients_equal_naive_double_backward(loss_function, lmbda, termination):
    problem = Problem(termination=termination, lmbda=lmbda, loss_function=loss_function)
    loss, metadata = problem.loss.value_loss(problem.td())
    loss.backward()
    expected, expected_gradients = problem.naive(
        termination, lmbda=lmbda, gradient_coeff=1.0, loss_function=loss_function
    )
    if termination:
        share = metadata["next_terminated"].mean()
        assert 0 < share < 1, "the case needs ended and running states"
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    ours = {k: v.grad for k, v in problem.loss.qvalue_network_params.flatten_keys(".").items()}
    names = [f"module.{name}" for name, _ in problem.critic_nets[0].named_parameters()]
    assert set(names) == set(ours)
    for name, gradient in zip(names, expected_gradients, strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


NORM = {"norm_class": nn.LayerNorm, "norm_kwargs": {"normalized_shape": 16}}


def test_critics_with_layer_norm_equal_naive_double_backward():
    problem = Problem(critic=NORM, lmbda=0.2)
    loss, _ = problem.loss.value_loss(problem.td())
    loss.backward()
    expected, gradients = problem.naive(lmbda=0.2, gradient_coeff=1.0, loss_function="smooth_l1")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    ours = {k: v.grad for k, v in problem.loss.qvalue_network_params.flatten_keys(".").items()}
    names = [f"module.{name}" for name, _ in problem.critic_nets[0].named_parameters()]
    assert set(names) == set(ours)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_critics_with_dropout_draw_their_own_masks():
    """In training each critic drops its own units at each call; in evaluation none does."""
    problem = Problem(critic={"dropout": 0.5})
    weights = problem.loss.qvalue_network_params.data
    weights[1] = weights[0].clone()
    first, second = (problem.loss.value_loss(problem.td())[1]["pred_value"] for _ in range(2))
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, second)
    problem.loss.eval()
    first, second = (problem.loss.value_loss(problem.td())[1]["pred_value"] for _ in range(2))
    torch.testing.assert_close(first[0], first[1])
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("loss_function", ["l2", "smooth_l1"])
def test_dyna_equals_naive(loss_function):
    problem = Problem(gradient_coeff=0.0, lmbda=0.7, loss_function=loss_function)
    loss, metadata = problem.loss.value_loss(problem.td())
    loss.backward()
    expected, gradients = problem.naive(lmbda=0.7, gradient_coeff=0.0, loss_function=loss_function)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(
        problem.loss.qvalue_network_params.flatten_keys(".").values(), gradients, strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-9, atol=1e-12)
    assert "action_gradient_error" not in metadata


def test_target_noise_is_drawn_clipped_and_added():
    problem = Problem(policy_noise=0.4, noise_clip=0.3, lmbda=0.2, loss_function="l2")
    torch.manual_seed(5)
    loss, _ = problem.loss.value_loss(problem.td())
    torch.manual_seed(5)
    noise = (0.4 * torch.randn(BATCH, ACTION, dtype=torch.float64)).clamp(-0.3, 0.3)
    assert (noise.abs() == 0.3).any(), "the case needs clipped noise"
    expected, _ = problem.naive(
        target_noise=noise, lmbda=0.2, gradient_coeff=1.0, loss_function="l2"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


def test_stochastic_ensemble_equals_naive_with_the_same_draws():
    dynamics = GaussianEnsembleWorldModel(
        OBS, ACTION, ensemble_size=3, num_cells=(16,), dtype=torch.float64
    )
    problem = Problem(dynamics=dynamics, lmbda=0.2)
    torch.manual_seed(5)
    problem.loss.value_loss(problem.td())  # the first call's check must not move the generator
    torch.manual_seed(5)
    loss, _ = problem.loss.value_loss(problem.td())
    torch.manual_seed(5)
    expected, _ = problem.naive(lmbda=0.2, gradient_coeff=1.0, loss_function="smooth_l1")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    fresh = Problem(dynamics=copy.deepcopy(dynamics), lmbda=0.2)
    torch.manual_seed(5)
    first, _ = fresh.loss.value_loss(problem.td())
    torch.manual_seed(5)
    torch.testing.assert_close(first, fresh.loss.value_loss(problem.td())[0], rtol=0, atol=0)


def test_actor_loss_and_gradients_equal_naive():
    problem = Problem()
    values = problem.loss.actor_loss(problem.td())[1]["state_action_value_actor"]
    with torch.no_grad():  # shift one critic so that neither is always the smaller
        bias = problem.loss.qvalue_network_params["module", "4", "bias"]
        bias[1] += (values[0] - values[1]).quantile(0.5)
    loss, metadata = problem.loss.actor_loss(problem.td())
    smaller = metadata["state_action_value_actor"].argmin(0)
    assert 0 < smaller.sum() < BATCH, "the case needs both critics in the minimum"
    loss.backward()
    actor = copy.deepcopy(problem.actor_net).requires_grad_()
    critics = [copy.deepcopy(net) for net in problem.critic_nets]
    for net, params in zip(critics, problem.loss.qvalue_network_params.data.unbind(0), strict=True):
        params["module"].to_module(net)
    expected = naive_actor_loss(problem.state, actor, critics)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    expected.backward()
    for ours, theirs in zip(problem.actor_net.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def linear_problem(gamma=GAMMA):
    """Everything linear or quadratic, so that Eq. 13 can be written down.

    Dynamics ``s' = s A + a B``, reward ``-|s'|^2 - 0.1 |a|^2``, policy ``s K``, critics
    ``[s, a] M_i [s, a]^T``. Actions stay within the bounds.
    """
    torch.manual_seed(1)
    dtype = torch.float64
    drift, push = torch.randn(OBS, OBS, dtype=dtype), torch.randn(ACTION, OBS, dtype=dtype)
    gain = torch.randn(OBS, ACTION, dtype=dtype)
    forms = torch.randn(2, OBS + ACTION, OBS + ACTION, dtype=dtype)

    class Quadratic(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.form = nn.Parameter(form)

        def forward(self, state, action):
            x = torch.cat([state, action], -1)
            return (x @ self.form * x).sum(-1, keepdim=True)

    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(gain.clone())

        def forward(self, state):
            return state @ self.gain

    world_model = TensorDictSequential(
        TensorDictModule(
            lambda s, a: s @ drift + a @ push, ["observation", "action"], [("next", "observation")]
        ),
        TensorDictModule(
            lambda a, n: -n.square().sum(-1, keepdim=True) - 0.1 * a.square().sum(-1, keepdim=True),
            ["action", ("next", "observation")],
            [("next", "reward")],
        ),
    )
    loss = MAGELoss(
        TensorDictModule(Gain(), ["observation"], ["action"]),
        [
            TensorDictModule(Quadratic(f), ["observation", "action"], ["state_action_value"])
            for f in forms
        ],
        world_model,
        bounds=(-1e3, 1e3),
        policy_noise=0.0,
        loss_function="l2",
    )
    loss.make_value_estimator(gamma=gamma)
    SoftUpdate(loss, tau=0.005)
    return loss, drift, push, gain, forms


def test_action_gradient_error_equals_the_closed_form_of_eq_13():
    """grad_a delta_i = dr/da + gamma ds'/da (dQ/ds' + dpi/ds' dQ/da') - dQ_i/da, by hand.

    With ``x = [s, a]`` and ``N = M + M^T``: ``dQ/dx = N x``; ``ds'/da = B``; ``dr/da = -0.2 a -
    2 B s'``; ``dpi/ds' = K``.
    """
    loss, drift, push, gain, forms = linear_problem()
    state = torch.randn(7, OBS, dtype=torch.float64)
    metadata = loss.value_loss(TensorDict(observation=state, batch_size=[7]))[1]
    symmetric = forms + forms.mT
    for b in range(7):
        s = state[b]
        a = s @ gain
        s_next = s @ drift + a @ push
        x, x_next = torch.cat([s, a]), torch.cat([s_next, s_next @ gain])
        values = torch.stack([x_next @ form @ x_next for form in forms])
        slope_next = symmetric[values.argmin()] @ x_next
        reward_path = -0.2 * a - 2 * push @ s_next
        target_slope = reward_path + GAMMA * push @ (slope_next[:OBS] + gain @ slope_next[OBS:])
        for i in range(2):
            error = target_slope - (symmetric[i] @ x)[OBS:]
            torch.testing.assert_close(metadata["action_gradient_error"][i, b], error.norm())


def test_action_gradient_error_equals_finite_differences():
    """Central differences of delta_i(a) in every coordinate of the action, nonlinear problem."""
    problem = Problem(termination=False)
    td = problem.td()
    norm = problem.loss.value_loss(td)[1]["action_gradient_error"]
    loss, h = problem.loss, 1e-6

    def delta(action):
        state = td.select("observation")
        with torch.no_grad():
            target, _ = loss._target(
                state,
                action,
                loss.value_estimator,
                loss.target_actor_network_params,
                loss.target_qvalue_network_params,
            )
            value = loss._qvalue(state, action.expand(2, -1, -1), loss.qvalue_network_params)
        return target - value

    action = problem.actor_net(problem.state).detach()
    slopes = []
    for j in range(ACTION):
        step = torch.zeros_like(action)
        step[:, j] = h
        slopes.append((delta(action + step) - delta(action - step)) / (2 * h))
    torch.testing.assert_close(norm, torch.stack(slopes, -1).norm(dim=-1), rtol=1e-6, atol=1e-8)


def test_termination_cuts_value_and_gradient():
    """In a terminated state only the reward reaches the target, and its gradient."""
    problem = Problem()
    metadata = problem.loss.value_loss(problem.td())[1]
    ended = metadata["next_terminated"].bool()
    action = problem.actor_net(problem.state).detach()
    next_state = problem.next_state(problem.state, action).detach()
    reward = reward_fn(problem.state, action, next_state).squeeze(-1)
    torch.testing.assert_close(metadata["target_value"][ended], reward[ended])
    assert not torch.isclose(metadata["target_value"], reward)[~ended].any()


def test_termination_probability_masks_the_target():
    """y = r + gamma (1 - p) Q', p differentiable; ``terminated`` beside it is not used."""
    problem = Problem(lmbda=0.2, loss_function="l2")
    plain = problem.loss.value_loss(problem.td())[1]["target_value"]
    problem.world_model.module.append(
        TensorDictModule(
            lambda n: torch.full_like(n[..., :1], 0.25),
            [("next", "observation")],
            [("next", "termination_probability")],
        )
    )
    masked = problem.loss.value_loss(problem.td())[1]
    torch.testing.assert_close(masked["next_terminated"], torch.full((BATCH,), 0.25).double())
    without = Problem(termination=False, lmbda=0.2)
    without = without.loss.value_loss(without.td())[1]["target_value"]
    action = problem.actor_net(problem.state).detach()
    reward = (
        reward_fn(problem.state, action, problem.next_state(problem.state, action))
        .detach()
        .squeeze(-1)
    )
    torch.testing.assert_close(masked["target_value"] - reward, 0.75 * (without - reward))
    assert not torch.allclose(plain, masked["target_value"])


def test_training_the_model_in_place_is_seen():
    problem = Problem()
    before = problem.loss.value_loss(problem.td())[1]["target_value"]
    with torch.no_grad():
        problem.dynamics.network[-1].bias.add_(0.3)
    assert not torch.allclose(problem.loss.value_loss(problem.td())[1]["target_value"], before)


def test_a_perfect_critic_is_a_fixed_point():
    """delta and its gradient exactly zero: the loss and its gradient are 0 and finite."""
    world_model = TensorDictSequential(
        TensorDictModule(lambda s, a: s + a, ["observation", "action"], [("next", "observation")]),
        TensorDictModule(lambda a: a.sum(-1, keepdim=True) * 0, ["action"], [("next", "reward")]),
    )

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, state, action):
            return (torch.cat([state, action], -1) * self.weight).sum(-1, keepdim=True)

    loss = MAGELoss(
        TensorDictModule(nn.Linear(1, 1), ["observation"], ["action"]),
        [TensorDictModule(Zero(), ["observation", "action"], ["state_action_value"])] * 2,
        world_model,
        bounds=(-1.0, 1.0),
        delay_actor=False,
        delay_qvalue=False,
    )
    for loss_function in ("smooth_l1", "l2", "l1"):
        loss.loss_function = loss_function
        value = loss.value_loss(TensorDict(observation=torch.ones(3, 1), batch_size=[3]))[0]
        value.backward()
        assert value == 0
        assert all(
            torch.equal(p.grad, torch.zeros_like(p))
            for p in loss.qvalue_network_params.parameters()
        )


@pytest.mark.parametrize("batch", [1, 7])
def test_saturated_actor_and_odd_batches_stay_finite(batch):
    dynamics = GaussianEnsembleWorldModel(
        OBS, ACTION, ensemble_size=4, num_cells=(8,), dtype=torch.float64
    )
    problem = Problem(dynamics=dynamics)
    with torch.no_grad():
        problem.actor_net[0][-1].bias.fill_(1e4)
    problem.state = problem.state[:batch]
    out = problem.loss(problem.td(batch))
    assert all(torch.isfinite(value).all() for value in out.values())
    (out["loss_qvalue"] + out["loss_actor"]).backward()
    assert all(torch.isfinite(p.grad).all() for p in problem.loss.parameters())


# ---------------------------------------------------------------- the contract of a LossModule


def test_renamed_nested_keys_reach_the_value_estimator():
    torch.manual_seed(0)
    actor = TensorDictModule(nn.Linear(2, 1), [("agent", "state")], [("agent", "push")])
    critic = TensorDictModule(
        MLP(3, 1, num_cells=[8]), [("agent", "state"), ("agent", "push")], [("agent", "q")]
    )
    world_model = TensorDictSequential(
        TensorDictModule(
            lambda s, a: s + a,
            [("agent", "state"), ("agent", "push")],
            [("next", "agent", "state")],
        ),
        TensorDictModule(lambda a: a + 1, [("agent", "push")], [("next", "agent", "gain")]),
        TensorDictModule(
            lambda n: n[..., :1] > 0, [("next", "agent", "state")], [("next", "agent", "fell")]
        ),
    )
    loss = MAGELoss(
        actor,
        critic,
        world_model,
        bounds=(-1.0, 1.0),
        delay_actor=False,
        delay_qvalue=False,
        policy_noise=0.0,
    )
    keys = {
        "action": ("agent", "push"),
        "state_action_value": ("agent", "q"),
        "reward": ("agent", "gain"),
        "terminated": ("agent", "fell"),
        "priority": ("agent", "priority"),
    }
    loss.set_keys(**keys)
    loss.make_value_estimator(gamma=0.5)
    td = TensorDict({("agent", "state"): torch.randn(20, 2)}, [20])
    out = loss(td)
    assert loss.in_keys == [("agent", "state")]
    assert td["agent", "priority"].shape == (20,)
    action = actor.module(td["agent", "state"])
    ended = (td["agent", "state"] + action)[..., 0] > 0
    assert 0 < ended.sum() < 20
    torch.testing.assert_close(out["target_value"][ended], (action + 1)[ended, 0])
    loss.set_keys(reward="other")
    assert loss.value_estimator.tensor_keys.reward == "other"
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(rewards="reward")


def test_a_list_keeps_each_critic_and_one_is_redrawn():
    problem = Problem()
    for i, net in enumerate(problem.critic_nets):
        for ours, theirs in zip(
            problem.loss.qvalue_network_params[i].values(True, True), net.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    single = TensorDictModule(
        MLP(6, 1, num_cells=[8]), ["observation", "action"], ["state_action_value"]
    )
    loss = MAGELoss(problem.actor.float(), single, problem.world_model.float(), bounds=(-1.0, 1.0))
    first, second = loss.qvalue_network_params["module", "0", "weight"]
    assert not torch.equal(first, second)


def test_targets_of_one_network_move_alone():
    problem = Problem()
    loss = problem.loss
    critic_targets = NetworkSoftUpdate(loss, ["qvalue_network"], tau=0.25)
    actor_targets = NetworkSoftUpdate(loss, ["actor_network"], tau=0.25)
    actor, critic = loss.actor_network_params.data, loss.qvalue_network_params.data
    old = actor.clone(), critic.clone()
    actor.apply_(lambda x: x.add_(1.0))
    critic.apply_(lambda x: x.add_(1.0))
    critic_targets.step()
    for value, target in zip(
        old[1].values(True, True), loss.target_qvalue_network_params.values(True, True), strict=True
    ):
        torch.testing.assert_close(target, value + 0.25)
    for value, target in zip(
        old[0].values(True, True), loss.target_actor_network_params.values(True, True), strict=True
    ):
        torch.testing.assert_close(target, value)
    actor_targets.step()
    for value, target in zip(
        old[0].values(True, True), loss.target_actor_network_params.values(True, True), strict=True
    ):
        torch.testing.assert_close(target, value + 0.25)
    with pytest.raises(ValueError, match=r"no \['target_critic_params'\]; its targets are"):
        NetworkSoftUpdate(loss, ["critic"], tau=0.1)


@pytest.mark.parametrize("delay", [True, False])
def test_a_list_of_one_critic_is_trained_from_its_own_parameters(delay):
    critic = TensorDictModule(
        MLP(3, 1, num_cells=[4]), ["observation", "action"], ["state_action_value"]
    )
    weights = [parameter.detach().clone() for parameter in critic.parameters()]
    actor = TensorDictModule(MLP(2, 1, num_cells=[4]), ["observation"], ["action"])
    loss = MAGELoss(
        actor,
        [critic],
        Problem().world_model,
        bounds=(-1.0, 1.0),
        num_qvalue_nets=1,
        delay_qvalue=delay,
        gradient_coeff=0.0,
    )
    parameters = list(loss.qvalue_network_params.parameters())
    assert all(parameter.requires_grad for parameter in parameters)
    torch.testing.assert_close([parameter.data[0] for parameter in parameters], weights)
    if delay:
        NetworkSoftUpdate(loss, ["qvalue_network"], tau=0.1)
        targets = loss.target_qvalue_network_params.values(True, True)
        online = loss.qvalue_network_params.values(True, True)
        assert all(torch.equal(a, b) for a, b in zip(targets, online, strict=True))


def test_reset_draws_plain_critics_at_their_first_scale():
    """PyTorch's own layers take their bound from the fan-in, which a stack has not."""
    actor = TensorDictModule(MLP(2, 1, num_cells=[64]), ["observation"], ["action"])
    critic = TensorDictModule(
        MLP(3, 1, num_cells=[64, 64]), ["observation", "action"], ["state_action_value"]
    )
    loss = MAGELoss(actor, [critic, copy.deepcopy(critic)], Problem().world_model, bounds=(-1, 1))
    NetworkSoftUpdate(loss, ["qvalue_network", "actor_network"], tau=0.005)
    before = loss.qvalue_network_params.data.clone()
    loss.reset_parameters_recursive()
    for key in (("module", "0", "weight"), ("module", "2", "weight"), ("module", "4", "weight")):
        weight, old = loss.qvalue_network_params[key], before[key]
        torch.testing.assert_close(weight.std(), old.std(), rtol=0.2, atol=0)
        assert not torch.isclose(weight, old).any(-1).all()
        assert not torch.equal(weight[0], weight[1])
        assert torch.equal(loss.target_qvalue_network_params[key], weight)


def test_reset_redraws_each_critic_as_it_was_drawn():
    """Xavier-uniform, each critic on its own, targets alike; a stacked fan is no fan."""
    observation_dim, action_dim, width = 2, 1, 64
    actor = TensorDictModule(xavier_mlp(2, 1, [width]), ["observation"], ["action"])
    critics = [
        TensorDictModule(
            xavier_mlp(observation_dim + action_dim, 1, [width]),
            ["observation", "action"],
            ["state_action_value"],
        )
        for _ in range(2)
    ]
    loss = MAGELoss(actor, critics, Problem().world_model, bounds=(-1.0, 1.0))
    NetworkSoftUpdate(loss, ["qvalue_network", "actor_network"], tau=0.005)
    loss.reset_parameters_recursive()
    weight = loss.qvalue_network_params["module", "0", "weight"]
    bound = (6 / (observation_dim + action_dim + width)) ** 0.5
    assert weight.shape == (2, width, observation_dim + action_dim)
    assert 0.95 * bound < weight.abs().max() <= bound
    assert (loss.qvalue_network_params["module", "0", "bias"] == 0).all()
    assert not torch.equal(weight[0], weight[1])
    assert torch.equal(loss.target_qvalue_network_params["module", "0", "weight"], weight)


def test_conversion_moves_the_world_model_along():
    problem = Problem()
    problem.loss.float()
    out = problem.loss(problem.td().float())
    assert out["loss_qvalue"].dtype == torch.float32
    assert {p.dtype for p in problem.world_model.parameters()} == {torch.float32}


def test_conversion_after_a_call_keeps_the_actors_loss_on_the_critics_it_trains():
    problem = Problem()
    problem.loss.actor_loss(problem.td())
    problem.loss.float().double()
    with torch.no_grad():
        for parameter in problem.loss.qvalue_network_params.parameters():
            parameter.mul_(1.5)
    loss, metadata = problem.loss.actor_loss(problem.td())
    action = problem.actor_net(problem.state)
    td = problem.td().set("action", action)
    values = []
    for params in problem.loss.qvalue_network_params.data.unbind(0):
        net = TensorDictModule(
            copy.deepcopy(problem.critic_nets[0]), ["observation", "action"], ["value"]
        )
        with params.to_module(net):
            values.append(net(td.clone())["value"].squeeze(-1))
    torch.testing.assert_close(metadata["state_action_value_actor"], torch.stack(values).detach())
    torch.testing.assert_close(loss, -torch.stack(values).min(0)[0].mean())


@pytest.mark.parametrize(
    ("delay_actor", "delay_qvalue"), [(False, False), (True, False), (False, True)]
)
def test_compiles_in_one_graph(delay_actor, delay_qvalue):
    """Inductor's own kernels and speed are the benchmarks' business: here, one graph, equal out."""
    problem = Problem(lmbda=0.2, delay_actor=delay_actor, delay_qvalue=delay_qvalue)
    eager, _ = problem.loss.value_loss(problem.td())
    eager.backward()
    gradients = [p.grad.clone() for p in problem.loss.qvalue_network_params.parameters()]
    problem.loss.zero_grad()
    compiled = torch.compile(problem.loss.value_loss, backend="aot_eager", fullgraph=True)
    loss, _ = compiled(problem.td())
    loss.backward()
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(
        [p.grad for p in problem.loss.qvalue_network_params.parameters()], gradients
    )


def test_a_sampling_world_model_samples():
    """LossModule forces deterministic modules to their means; the model's noise is the method's."""
    dynamics = TensorDictSequential(
        TensorDictModule(
            lambda s, a: (s + a.sum(-1, keepdim=True), torch.ones_like(s)),
            ["observation", "action"],
            ["loc", "scale"],
        ),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"],
            out_keys=[("next", "observation")],
            distribution_class=torch.distributions.Normal,
        ),
    )
    problem = with_world_model(dynamics, TensorDictModule(*REWARD))
    targets = [problem.loss(problem.td())["target_value"] for _ in range(2)]
    assert not torch.allclose(*targets)


def test_updaters_leave_the_other_networks_alone():
    problem = Problem()
    loss = MAGELoss(
        problem.actor, problem.loss.qvalue_network, problem.world_model, bounds=(-1.0, 1.0)
    )
    with torch.no_grad():
        loss.qvalue_network_params.data.apply_(lambda x: x.add_(1.0))
    targets = dict(loss.named_children())["target_qvalue_network_params"]
    before = targets.clone()
    NetworkSoftUpdate(loss, "actor_network", tau=0.1)
    for old, new in zip(
        before.values(True, True),
        targets.values(True, True),
        strict=True,
    ):
        torch.testing.assert_close(old, new)
    with pytest.warns(UserWarning, match="No target network updater"):
        loss.value_loss(problem.td())  # the critics' targets still have none


def test_action_spec_bounds_the_target_action():
    """Plain, batched and composite specs, with bounds that the target noise exceeds."""
    bounded = Bounded(-0.1, 0.1, (ACTION,), dtype=torch.float64)
    kwargs = {"policy_noise": 5.0, "noise_clip": 9.0}
    torch.manual_seed(2)
    expected = Problem(bounds=(-0.1, 0.1), **kwargs).loss(Problem().td())["target_value"]
    for spec in (
        bounded,
        bounded.expand(4, ACTION),
        Composite(action=bounded),
        Composite(action=bounded.expand(4, ACTION), shape=(4,)),
    ):
        torch.manual_seed(2)
        out = Problem(bounds=None, action_spec=spec, **kwargs).loss(Problem().td())
        torch.testing.assert_close(out["target_value"], expected)


def test_several_state_keys_of_any_kind_by_keyword():
    """Pixels, an integer task and a vector: the batch is what their shapes share."""

    class Actor(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(OBS, ACTION)

        def forward(self, observation, task, pixels):
            shift = (
                task.to(observation.dtype) + pixels.to(observation.dtype).mean((-1, -2))[..., :1]
            )
            return torch.tanh(self.linear(observation) + shift)

    keys = ["observation", "task", "pixels"]
    actor = TensorDictModule(Actor(), keys, ["action"])
    critic = TensorDictModule(
        MLP(OBS + ACTION, 1, num_cells=[4]), ["observation", "action"], ["state_action_value"]
    )
    world_model = TensorDictSequential(
        TensorDictModule(*DYNAMICS),
        TensorDictModule(
            lambda t, p: (t.clone(), p.clone()),
            ["task", "pixels"],
            [("next", "task"), ("next", "pixels")],
        ),
        TensorDictModule(*REWARD),
    )
    loss = MAGELoss(actor, critic, world_model, bounds=(-1.0, 1.0), reduction="none")
    SoftUpdate(loss, tau=0.1)
    data = {
        "observation": torch.randn(5, OBS),
        "task": torch.randint(3, (5, 1)),
        "pixels": torch.randint(255, (5, 3, 2, 2), dtype=torch.uint8),
    }
    loss.select_out_keys("loss_actor")
    assert loss(**data).shape == (5,)
    assert loss(TensorDict(data, [5]))["loss_actor"].shape == (5,)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lmbda": -0.1}, "lmbda must be a finite number of at least 0, got -0.1"),
        ({"lmbda": float("nan")}, "lmbda must be a finite number of at least 0, got nan"),
        ({"gradient_coeff": -1.0}, "gradient_coeff must be .* got -1.0"),
        ({"policy_noise": -1.0}, "policy_noise must be .* got -1.0"),
        ({"loss_function": "huber"}, "loss_function must be one of .*smooth_l1.* got 'huber'"),
        ({"num_qvalue_nets": 0}, "num_qvalue_nets must be at least 1, got 0"),
        ({"num_qvalue_nets": 3}, "list of 2 critics and num_qvalue_nets=3"),
        ({"action_spec": Bounded(-1, 1, (ACTION,))}, "One of 'bounds' and 'action_spec'"),
        ({"bounds": None}, "One of 'bounds' and 'action_spec'"),
        (
            {"bounds": None, "action_spec": Unbounded((ACTION,))},
            "needs a bounded continuous action",
        ),
        ({"bounds": (1.0, -1.0)}, "low bound higher"),
        ({"bounds": (-1.0, float("inf"))}, "needs a bounded continuous action, got the bounds"),
        ({"bounds": (float("nan"), 1.0)}, "needs a bounded continuous action, got the bounds"),
        (
            {"bounds": None, "action_spec": Composite(push=Bounded(-1, 1, (ACTION,)))},
            r"action_spec has \['push'\], not 'action'",
        ),
        ({"reduction": "median"}, "reduction must be one of .* got 'median'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Problem(**kwargs)


def with_world_model(*modules):
    problem = Problem()
    problem.loss.__dict__["world_model"] = TensorDictSequential(*modules)
    return problem


DYNAMICS = (
    lambda s, a: s + a.sum(-1, keepdim=True),
    ["observation", "action"],
    [("next", "observation")],
)
REWARD = (lambda a: a.sum(-1, keepdim=True), ["action"], [("next", "reward")])


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([DYNAMICS], r"writes no reward under \('next', 'reward'\).*append a reward module"),
        (
            [(lambda s, a: (s + a.sum()).detach(), *DYNAMICS[1:]), REWARD],
            r"next state .*'observation'.* carries no gradient to the action.*detach",
        ),
        ([(lambda s: 2 * s, ["observation"], DYNAMICS[2]), REWARD], "carries no gradient"),
        (
            [DYNAMICS, (lambda a: a.sum(-1), *REWARD[1:])],
            r"'reward'\) has shape \(12,\), expected \(12, 1\)",
        ),
        (
            [DYNAMICS, REWARD, (lambda a: a[..., :1], ["action"], [("next", "terminated")])],
            r"'terminated'\) has dtype torch.float64, expected torch.bool",
        ),
        (
            [(lambda s, a: (s + a.sum())[..., :2], *DYNAMICS[1:]), REWARD],
            r"'observation'\) has shape \(12, 2\)",
        ),
        (
            [(nn.Linear(OBS, OBS), ["observation"], DYNAMICS[2]), REWARD],
            r"the world model cannot take inputs of shape .*'observation': \(12, 4\).*same dtype",
        ),
    ],
)
def test_bad_world_models_are_named(modules, message):
    problem = with_world_model(*(TensorDictModule(*module) for module in modules))
    with pytest.raises(ValueError, match=message):
        problem.loss.value_loss(problem.td())


def test_world_model_that_leaves_out_a_state_the_actor_reads():
    actor = TensorDictModule(
        MLP(2 * OBS, ACTION, num_cells=[4]), ["observation", "goal"], ["action"]
    )
    critic = TensorDictModule(
        MLP(6, 1, num_cells=[4]), ["observation", "action"], ["state_action_value"]
    )
    world_model = TensorDictSequential(TensorDictModule(*DYNAMICS), TensorDictModule(*REWARD))
    loss = MAGELoss(actor, critic, world_model, bounds=(-1.0, 1.0))
    td = TensorDict(observation=torch.zeros(5, OBS), goal=torch.zeros(5, OBS), batch_size=[5])
    with pytest.raises(
        ValueError, match=r"read 'goal', but the world model writes no \('next', 'g"
    ):
        loss.value_loss(td)


def test_a_forgotten_normaliser_is_named():
    actor = TensorDictModule(
        MLP(OBS, ACTION, num_cells=[4]), ["normalized_observation"], ["action"]
    )
    critic = TensorDictModule(
        MLP(6, 1, num_cells=[4]), ["normalized_observation", "action"], ["state_action_value"]
    )
    world_model = TensorDictSequential(TensorDictModule(*DYNAMICS), TensorDictModule(*REWARD))
    loss = MAGELoss(actor, critic, world_model, bounds=(-1.0, 1.0))
    state = torch.zeros(5, OBS)
    td = TensorDict(observation=state, normalized_observation=state, batch_size=[5])
    with pytest.raises(ValueError, match=r"writes no .*normalized_observation.*normalizer.on\("):
        loss.value_loss(td)


def test_modules_that_write_other_keys_are_named():
    problem = Problem()
    odd = TensorDictModule(problem.actor_net, ["observation"], ["push"])
    loss = MAGELoss(odd, problem.loss.qvalue_network, problem.world_model, bounds=(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"actor writes no 'action'; .*set_keys\(action="):
        loss.value_loss(problem.td())
    problem = Problem()
    critic = TensorDictModule(problem.critic_nets[0], ["observation", "action"], ["q"])
    loss = MAGELoss(problem.actor, critic, problem.world_model, bounds=(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"critic writes no 'state_action_value'"):
        loss.actor_loss(problem.td())


def test_shared_parameters_with_separate_losses():
    """One critic: the shared encoder is trained by the actor's loss alone. A list is refused."""
    encoder = nn.Linear(OBS, OBS)

    class Head(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(OBS, out)

    class Actor(Head):
        def forward(self, s):
            return self.head(self.encoder(s).tanh())

    class Critic(Head):
        def forward(self, s, a):
            return self.head(self.encoder(s).tanh() + a.sum(-1, keepdim=True)).square()

    actor = TensorDictModule(Actor(ACTION), ["observation"], ["action"])
    critics = [
        TensorDictModule(Critic(1), ["observation", "action"], ["state_action_value"])
        for _ in range(2)
    ]
    world_model = TensorDictSequential(TensorDictModule(*DYNAMICS), TensorDictModule(*REWARD))
    kwargs = {"bounds": (-1.0, 1.0), "separate_losses": True}
    with pytest.raises(ValueError, match="2 of whose parameters are the actor's: pass a single"):
        MAGELoss(actor, critics, world_model, **kwargs)
    loss = MAGELoss(actor, critics[0], world_model, **kwargs)
    SoftUpdate(loss, tau=0.1)
    td = TensorDict(observation=torch.randn(6, OBS), batch_size=[6])
    loss.value_loss(td)[0].backward()
    assert encoder.weight.grad is None
    loss.actor_loss(td)[0].backward()
    assert encoder.weight.grad.abs().sum() > 0


def test_a_step_of_the_critics_before_the_actors_backward_is_refused():
    """As autograd refuses it, rather than a gradient at other critics."""
    problem = Problem()
    loss, _ = problem.loss.actor_loss(problem.td())
    with torch.no_grad():
        for parameter in problem.loss.qvalue_network_params.parameters():
            parameter.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_critics_that_share_parameters_are_all_trained():
    """TorchRL would hold constant what they share, without a word."""
    problem = Problem()
    trunk = TensorDictModule(
        MLP(OBS + ACTION, 8, num_cells=[]).double(), ["observation", "action"], ["hidden"]
    )

    def critic():
        head = TensorDictModule(nn.Linear(8, 1).double(), ["hidden"], ["state_action_value"])
        return TensorDictSequential(trunk, head)

    one = critic()
    for critics in ([critic(), critic()], [one, one]):
        loss = MAGELoss(problem.actor, critics, problem.world_model, bounds=(-1.0, 1.0))
        SoftUpdate(loss, tau=0.1)
        params = loss.qvalue_network_params
        assert len(list(params.parameters())) == 4
        weights = params["module", "0", "module", "0", "weight"]
        torch.testing.assert_close(weights[1], trunk.module[0].weight)
        loss.value_loss(problem.td())[0].backward()
        for parameter in params.parameters():
            assert (parameter.grad.flatten(1).norm(dim=1) > 0).all()


def test_weights_of_a_prioritised_replay_weigh_the_states():
    problem = Problem(termination=False)
    weight = torch.tensor([0.0] * (BATCH - 2) + [1.0, 3.0], dtype=torch.float64)
    loss, _ = problem.loss.value_loss(problem.td().set("priority_weight", weight))
    each = Problem(termination=False, reduction="none").loss.value_loss(problem.td())[0]
    torch.testing.assert_close(loss, (each[-2] + 3 * each[-1]) / 4)
    assert not torch.isclose(loss, each.mean())
    column = problem.td().set("priority_weight", weight.float().unsqueeze(-1))
    torch.testing.assert_close(problem.loss.value_loss(column)[0], loss)
    wrong = problem.td().set("priority_weight", torch.ones(BATCH, 2))
    with pytest.raises(ValueError, match=r"'priority_weight' has shape \(12, 2\); one weight"):
        problem.loss.value_loss(wrong)


def test_they_weigh_the_actors_loss_too():
    problem = Problem()
    weight = torch.tensor([0.0] * (BATCH - 2) + [1.0, 3.0], dtype=torch.float64)
    loss, _ = problem.loss.actor_loss(problem.td().set("priority_weight", weight))
    each = Problem(reduction="none").loss.actor_loss(problem.td())[0]
    torch.testing.assert_close(loss, (each[-2] + 3 * each[-1]) / 4)
    assert not torch.isclose(loss, each.mean())


def test_a_first_call_in_inference_mode():
    problem, other = Problem(), Problem()
    with torch.inference_mode():
        found = problem.loss(TensorDict(observation=problem.state.clone(), batch_size=[BATCH]))
    torch.testing.assert_close(found["loss_qvalue"], other.loss(other.td())["loss_qvalue"].detach())


def test_bounds_keep_the_networks_precision():
    problem = Problem(bounds=(-0.3, 0.3))
    assert problem.loss.max_action.item() == 0.3
    assert problem.loss.min_action.item() == -0.3


def test_compiles_at_a_second_batch_size():
    """Which Dynamo takes for a size of any value."""
    model = GaussianEnsembleWorldModel(
        OBS, ACTION, ensemble_size=3, num_cells=(8,), dtype=torch.float64
    )
    loss = Problem(dynamics=model, termination=False).loss
    torch.compiler.reset()
    for function in (loss.value_loss, loss.actor_loss):
        graph = torch.compile(function, fullgraph=True, backend="eager")
        for size in (7, 9):
            states = TensorDict(observation=torch.randn(size, OBS).double(), batch_size=[size])
            torch.manual_seed(0)
            found, _ = graph(states)
            torch.manual_seed(0)
            torch.testing.assert_close(found, function(states)[0])


def test_an_action_of_another_shape_is_named():
    problem = Problem()
    critics = [
        TensorDictModule(net, ["observation", "action"], ["state_action_value"])
        for net in problem.critic_nets
    ]
    spec = Bounded(-1.0, 1.0, shape=(3,), dtype=torch.float64)
    loss = MAGELoss(problem.actor, critics, problem.world_model, action_spec=spec)
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match="'action' has 2 features, action_spec 3"):
        loss(problem.td())
    whole = TensorDict(observation=problem.state.reshape(4, 3, OBS), batch_size=[4])
    with pytest.raises(ValueError, match=r"shape \(4, 3, 2\) over states of batch size \[4\]"):
        problem.loss(whole)


def test_missing_entry_and_dtype_are_named():
    problem = Problem()
    with pytest.raises(ValueError, match="networks read 'observation', which the tensordict does"):
        problem.loss(TensorDict(state=problem.state, batch_size=[BATCH]))
    with pytest.raises(ValueError, match="dtype torch.float32, the networks torch.float64"):
        problem.loss(problem.td().float())


def test_critic_without_a_last_dimension_of_one_is_named():
    problem = Problem()
    critics = [
        TensorDictModule(
            MLP(6, 2, num_cells=[4]).double(), ["observation", "action"], ["state_action_value"]
        )
        for _ in range(2)
    ]
    loss = MAGELoss(problem.actor, critics, problem.world_model, bounds=(-1.0, 1.0))
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match=r"expected \(2, 12, 1\): end it with a layer of one"):
        loss(problem.td())


@pytest.mark.parametrize("learned", [False, True])
def test_paths_of_the_targets_gradient_add_up_to_it(learned):
    """Eq. 13; a learned termination counts to the path through the next state."""
    problem = Problem(policy_noise=0.2, gradient_coeff=1.0)
    if learned:
        problem.loss.world_model.append(
            TensorDictModule(
                lambda s: s[..., :1].sigmoid(),
                in_keys=[("next", "observation")],
                out_keys=[("next", "termination_probability")],
            )
        )
    loss, state = problem.loss, problem.td()
    torch.manual_seed(1)
    paths = loss.target_gradient_paths(state)
    torch.manual_seed(1)
    action = problem.actor_net(problem.state).detach().requires_grad_()
    target, _ = loss._target(state, action, *loss._constants())
    (gradient,) = torch.autograd.grad(target.sum(), action)
    assert list(paths) == ["reward_path", "next_state_path", "next_action_path"]
    assert all(path.abs().sum() > 0 for path in paths.values())
    torch.testing.assert_close(sum(paths.values()), gradient)


def redq(num_qvalue_nets, sub_sample_len, **kwargs):
    problem = Problem()
    torch.manual_seed(3)
    critics = [
        TensorDictModule(
            MLP(OBS + ACTION, 1, num_cells=[16]).double(),
            in_keys=["observation", "action"],
            out_keys=["state_action_value"],
        )
        for _ in range(num_qvalue_nets)
    ]
    loss = MAGELoss(
        problem.actor,
        critics,
        problem.world_model,
        bounds=(-1.0, 1.0),
        policy_noise=0.0,
        num_qvalue_nets=num_qvalue_nets,
        sub_sample_len=sub_sample_len,
        **kwargs,
    )
    loss.make_value_estimator(gamma=GAMMA)
    SoftUpdate(loss, tau=0.005)
    return problem, loss, critics


def test_redq_takes_the_minimum_over_a_random_pair():
    """Over many calls the target is the minimum over each of the three pairs, equally often."""
    problem, loss, critics = redq(3, 2)
    td = problem.td()
    action = problem.actor(td.clone())["action"]
    out = problem.world_model(td.clone().set("action", action))["next"]
    inputs = problem.actor(out.clone())
    values = torch.cat([critic(inputs.clone())["state_action_value"] for critic in critics], -1)
    alive = (~out["terminated"]).double()
    seen = []
    for _ in range(300):
        target = loss.value_loss(td)[1]["target_value"]
        matches = [
            torch.allclose(target, (out["reward"] + GAMMA * alive * pair.min(-1, True)[0])[:, 0])
            for pair in (values[:, [0, 1]], values[:, [0, 2]], values[:, [1, 2]])
        ]
        assert sum(matches) == 1
        seen.append(matches.index(True))
    counts = torch.tensor(seen).bincount(minlength=3)
    assert counts.min() > 60, "100 each, with a standard deviation of 8"


def test_redq_actor_ascends_the_mean():
    problem, loss, critics = redq(3, 2)
    inputs = problem.actor(problem.td())
    values = torch.cat([critic(inputs.clone())["state_action_value"] for critic in critics], -1)
    torch.testing.assert_close(loss.actor_loss(problem.td())[0], -values.mean())


@pytest.mark.parametrize("size", [0, 3])
def test_impossible_subset_is_named(size):
    with pytest.raises(ValueError, match=f"between 1 and num_qvalue_nets=2, got {size}"):
        Problem(sub_sample_len=size)
