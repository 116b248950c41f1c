"""Targets of several imagined steps: exact in the first action through all of them."""

from __future__ import annotations

import copy

import pytest
import torch
from objectives.test_contract import Case
from objectives.test_mage import ACTION, BATCH, GAMMA, OBS, Problem, linear_problem, reward_fn
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.nn.functional import smooth_l1_loss

from torchrl_mage import GaussianEnsembleWorldModel


def naive_target(problem, action, horizon, noise=0.0, alive_fn=None):
    """``y`` written as its sum, for Problem's deterministic networks; ``[B, 1]``."""
    state, total, weight = problem.state, 0.0, torch.ones(BATCH, 1, dtype=torch.float64)
    for h in range(horizon):
        following = problem.next_state(state, action)
        total = total + GAMMA**h * weight * reward_fn(state, action, following)
        weight = weight * alive_fn(following)
        state, action = following, problem.target_actor(following)
    action = (action + noise).clamp(-1, 1)
    values = [critic(torch.cat([state, action], -1)) for critic in problem.target_critics]
    return total + GAMMA**horizon * weight * torch.minimum(*values)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradients_equal_naive_double_backward(horizon, soft):
    """``y = sum gamma^h c_h r_h + gamma^H c_H min Q'``, all of it in one graph, in float64."""
    problem = Problem(horizon=horizon, lmbda=0.3, policy_noise=0.4, noise_clip=0.3)

    def alive(following):
        hard = (following[..., :1] <= 0.5).double()
        return 1 - (following[..., :1] - 0.5).sigmoid() if soft else hard

    if soft:
        problem.world_model.module.append(
            TensorDictModule(
                lambda s: (s[..., :1] - 0.5).sigmoid(),
                [("next", "observation")],
                [("next", "termination_probability")],
            )
        )
    torch.manual_seed(3)
    loss, metadata = problem.loss.value_loss(problem.td())
    loss.backward()
    torch.manual_seed(3)
    noise = (0.4 * torch.randn(BATCH, ACTION, dtype=torch.float64)).clamp(-0.3, 0.3)
    action = problem.actor_net(problem.state).detach().requires_grad_()
    target = naive_target(problem, action, horizon, noise, alive)
    torch.testing.assert_close(metadata["target_value"], target.detach().squeeze(-1))
    expected = 0.0
    critics = []
    for i, net in enumerate(problem.critic_nets):
        critic = copy.deepcopy(net)
        problem.loss.qvalue_network_params.data[i]["module"].to_module(critic)
        critics.append(critic.requires_grad_())
        delta = (target - critic(torch.cat([problem.state, action], -1))).squeeze(-1)
        (slope,) = torch.autograd.grad(delta.sum(), action, create_graph=True)
        for error, weight in ((slope.norm(dim=-1), 1.0), (delta, 0.3)):
            huber = smooth_l1_loss(error, torch.zeros_like(error), reduction="none")
            expected = expected + weight * huber.mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    if not soft:  # which the naive loss of the benchmarks does not know
        settings = {"lmbda": 0.3, "gradient_coeff": 1.0, "loss_function": "smooth_l1"}
        plain, _ = problem.naive(target_noise=noise, horizon=horizon, **settings)
        torch.testing.assert_close(loss, plain, rtol=1e-9, atol=1e-12)
    for i, critic in enumerate(critics):
        theirs = torch.autograd.grad(expected, list(critic.parameters()), retain_graph=True)
        ours = [p.grad[i] for p in problem.loss.qvalue_network_params["module"].values(True, True)]
        for gradient, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)


def test_the_target_of_a_linear_quadratic_problem_in_closed_form():
    """Linear dynamics ``s' = s A + a B`` under ``a = s K``, quadratic reward and critics.

    After the first step the state is ``s_h = s_1 M^(h-1)`` with ``M = A + K B``, so value and slope
    are sums of quadratic forms, and ``ds_h/da = B M^(h-1)``.
    """
    loss, drift, push, gain, forms = linear_problem()
    loss.horizon = horizon = 4
    state = 1e-3 * torch.randn(7, OBS, dtype=torch.float64)  # so that no action leaves its box
    metadata = loss.value_loss(TensorDict(observation=state, batch_size=[7]))[1]
    closed_loop = drift + gain @ push
    for b in range(7):
        s, a = state[b], state[b] @ gain
        jacobian, following = push, s @ drift + a @ push
        total = -following @ following - 0.1 * a @ a
        slope = -2 * jacobian @ following - 0.2 * a
        for h in range(1, horizon):
            action = following @ gain
            by_action = jacobian @ gain
            jacobian, following = jacobian @ closed_loop, following @ closed_loop
            total += GAMMA**h * (-following @ following - 0.1 * action @ action)
            slope += GAMMA**h * (-2 * jacobian @ following - 0.2 * by_action @ action)
        x = torch.cat([following, following @ gain])
        values = torch.stack([x @ form @ x for form in forms])
        form = forms[values.argmin()]
        total += GAMMA**horizon * values.min()
        dx = torch.cat([jacobian, jacobian @ gain], -1)
        slope += GAMMA**horizon * dx @ (form + form.T) @ x
        torch.testing.assert_close(metadata["target_value"][b], total)
        for i in range(2):
            own = ((forms[i] + forms[i].T) @ torch.cat([s, a]))[OBS:]
            torch.testing.assert_close(
                metadata["action_gradient_error"][i, b], (slope - own).norm()
            )


def test_each_soft_action_brings_its_entropy_bonus():
    """``y = sum gamma^h (r_h - [h>0] alpha log pi(a_h)) + gamma^H (min Q' - alpha log pi(a_H))``.

    An actor of one fixed Gaussian draws actions whose log-probabilities can be written down.
    """
    case = Case("MAGE-SAC", horizon=3, alpha_init=0.7)
    torch.manual_seed(4)
    target = case.loss.value_loss(case.td())[1]["target_value"]
    torch.manual_seed(4)
    loss = case.loss
    state, total, weight = case.td().select("observation"), 0.0, 1.0
    action, _ = loss._sample(state, loss.actor_network_params)
    for _ in range(3):
        out = case.model(state.clone().set("action", action))["next"]
        total = total + weight * out["reward"].squeeze(-1)
        weight = weight * 0.9 * (~out["terminated"]).double().squeeze(-1)
        state = out.select("observation")
        action, log_prob = loss._sample(state, loss.actor_network_params)
        total = total - weight * 0.7 * log_prob
    params = loss.target_qvalue_network_params
    value = loss._qvalue(state, action.expand(2, -1, -1), params).min(0).values
    torch.testing.assert_close(target, (total + weight * value).detach())


@pytest.mark.parametrize("name", ["MAGE", "MAGE-SAC", "Taylor TD in the state"])
def test_compiles_in_one_graph_with_the_eager_values(name):
    case = Case(name, horizon=3)
    states = case.td()
    torch.manual_seed(0)
    expected, _ = case.loss.value_loss(states)
    torch.compiler.reset()
    graph = torch.compile(case.loss.value_loss, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    torch.testing.assert_close(graph(states)[0], expected)


def test_each_imagined_step_costs_one_members_work():
    """Each of three steps deals the batch of 12 to 3 members: 4 rows a member, not 12."""
    model = GaussianEnsembleWorldModel(
        OBS, ACTION, ensemble_size=3, num_cells=(8,), dtype=torch.float64
    )
    problem = Problem(dynamics=model, horizon=3)
    problem.loss.check(problem.td())
    shapes = []
    model.network.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:2]))
    problem.loss._target(problem.td(), problem.actor_net(problem.state), *problem.loss._constants())
    assert shapes == [(3, 4)] * 3


def test_paths_of_the_targets_gradient_add_up_to_it():
    problem = Problem(horizon=3, policy_noise=0.2)
    loss, state = problem.loss, problem.td()
    torch.manual_seed(1)
    paths = loss.target_gradient_paths(state)
    torch.manual_seed(1)
    action = problem.actor_net(problem.state).detach().requires_grad_()
    target, _ = loss._target(state, action, *loss._constants())
    (gradient,) = torch.autograd.grad(target.sum(), action)
    assert all(path.abs().sum() > 0 for path in paths.values())
    torch.testing.assert_close(sum(paths.values()), gradient)


def test_critics_are_trained_at_noisy_actions_in_the_box():
    """``a = clip(pi(s) + noise)``: the critics' value there, and nothing else, tells."""
    problem = Problem(action_noise=0.8)
    torch.manual_seed(2)
    found = problem.loss.value_loss(problem.td())[1]["pred_value"]
    torch.manual_seed(2)
    noise = 0.8 * torch.randn(BATCH, ACTION, dtype=torch.float64)
    action = (problem.actor_net(problem.state) + noise).clamp(-1, 1).detach()
    assert (action.abs() == 1).any(), "the case needs clipped actions"
    inputs = torch.cat([problem.state, action], -1)
    expected = torch.stack([net(inputs).squeeze(-1) for net in problem.critic_nets])
    torch.testing.assert_close(found, expected.detach())
    assert not torch.allclose(Problem().loss.value_loss(problem.td())[1]["pred_value"], found)


@pytest.mark.parametrize("horizon", [0, -1, 2.0, True])
def test_an_impossible_horizon_is_named(horizon):
    with pytest.raises(ValueError, match=f"horizon must be at least 1, got {horizon}"):
        Problem(horizon=horizon)


def test_a_world_model_that_cannot_go_on_is_named_at_the_door():
    """Beyond the first step it needs what it reads itself."""
    problem = Problem(horizon=2)
    problem.loss.__dict__["world_model"] = TensorDictModule(
        lambda s, w, a: (s + w * a.sum(-1, keepdim=True), a[..., :1]),
        ["observation", "wind", "action"],
        [("next", "observation"), ("next", "reward")],
    )
    td = problem.td().set("wind", torch.ones(BATCH, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"writes no \('next', 'wind'\)"):
        problem.loss.value_loss(td)
