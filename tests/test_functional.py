"""The paper's maths by hand and in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from torchrl_mage import OraclePendulum
from torchrl_mage import functional as F
from torchrl_mage.diagnostics import oracle_gradient_error, policy_gradient_bound
from torchrl_mage.envs.pendulum import pendulum_dynamics, pendulum_reward


def test_gaussian_nll_is_the_density_up_to_a_constant():
    mean, log_var, x = torch.randn(3, 5, dtype=torch.float64)
    density = torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(x)
    expected = -2 * density - math.log(2 * math.pi)
    torch.testing.assert_close(F.gaussian_nll(mean, log_var, x), expected)


def test_bounded_log_variance_stays_inside():
    raw = torch.tensor([-1e30, -3.0, 0.0, 3.0, 1e30])
    out = F.bounded_log_variance(raw, -5.0, -1.0)
    torch.testing.assert_close(out[[0, 2, 4]], torch.tensor([-5.0, -3.0, -1.0]))
    assert (out.diff() > 0).all()


@given(batch=st.integers(1, 40), ensemble_size=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_balanced_slots_are_a_partition(batch, ensemble_size):
    slot, rows = F.balanced_slots(batch, ensemble_size)
    assert rows == math.ceil(batch / ensemble_size)
    assert len(slot.unique()) == batch
    assert 0 <= slot.min() <= slot.max() < rows * ensemble_size
    share = (slot // rows).bincount(minlength=ensemble_size)
    assert share.max() - share.min() <= 1


@given(member=st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_grouped_slots_keep_each_elements_member(member):
    member = torch.tensor(member)
    slot, rows = F.grouped_slots(member, 6)
    assert torch.equal(slot // rows, member)
    assert len(slot.unique()) == len(member)
    assert rows == member.bincount().max()


def test_mage_critic_loss_by_hand():
    """Huber: 0.5 x^2 below 1, |x| - 0.5 above. Two critics, two states, two actions.

    Critic 1: norms 5 and 0.5, errors 2 and 0; critic 2: norms 0 and 1, errors -0.5 and 0.
    """
    gradient = torch.tensor([[[3.0, 4.0], [0.3, 0.4]], [[0.0, 0.0], [0.6, 0.8]]])
    error = torch.tensor([[2.0, 0.0], [-0.5, 0.0]])
    loss = F.mage_critic_loss(
        error, gradient, lmbda=0.2, gradient_coeff=3.0, loss_function="smooth_l1"
    )
    first = 3 * 4.5 + 0.2 * 1.5 + 0.2 * 0.125
    second = 3 * 0.125 + 3 * 0.5
    torch.testing.assert_close(loss, torch.tensor([first, second]))
    dyna = F.mage_critic_loss(error, None, lmbda=0.2, gradient_coeff=0.0, loss_function="l1")
    torch.testing.assert_close(dyna, torch.tensor([0.5, 0.0]))


def test_value_and_action_gradient_stays_differentiable():
    weight = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    action = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    value, gradient, (kept,) = F.value_and_action_gradient(
        lambda a: ((weight * a.square()).sum(-1), (a.sum(),)), action
    )
    torch.testing.assert_close(value, torch.tensor([-7.0], dtype=torch.float64))
    torch.testing.assert_close(gradient, 2 * weight * action)
    assert kept == 4
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    torch.testing.assert_close(second, 2 * action[0])


def test_target_gradient_paths_are_those_of_eq_13():
    """Linear dynamics and policy, quadratic value: each path by hand, and their sum by autograd."""
    torch.manual_seed(0)
    dtype, gamma = torch.float64, 0.9
    push, gain = torch.randn(2, 3, dtype=dtype), torch.randn(3, 2, dtype=dtype)
    form = torch.randn(5, 5, dtype=dtype)
    state, action = torch.randn(7, 3, dtype=dtype), torch.randn(7, 2, dtype=dtype)

    def imagine(a):
        return state + a @ push, -a.square().sum(-1)

    def value(s, a):
        x = torch.cat([s, a], -1)
        return (x @ form * x).sum(-1)

    paths = F.target_gradient_paths(imagine, lambda s: s @ gain, value, action, gamma=gamma)
    s_next = state + action @ push
    slope = torch.cat([s_next, s_next @ gain], -1) @ (form + form.T)
    expected = (
        -2 * action,
        gamma * slope[:, :3] @ push.T,
        gamma * slope[:, 3:] @ gain.T @ push.T,
    )
    torch.testing.assert_close(paths, expected)

    def target(a):
        s, r = imagine(a)
        return r + gamma * value(s, s @ gain), ()

    _, total, _ = F.value_and_action_gradient(target, action)
    torch.testing.assert_close(sum(paths), total)


# ---------------------------------------------------------------- Proposition 3.1


class LinearQuadratic:
    """s' = A s + B a, reward -(s'Qs + a'Ra), a = K s, deterministic: Q^pi is exactly quadratic.

    V(s) = -s'Ps with P the solution of P = Q + K'RK + gamma M'PM, M = A + BK, and
    Q(s, a) = -(s'Qs + a'Ra) - gamma (As + Ba)'P(As + Ba).
    """

    gamma = 0.9

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.A, self.B, self.K = 0.4 * draw(3, 3), draw(3, 2), 0.2 * draw(2, 3)
        self.Q, self.R = torch.eye(3).double(), 0.5 * torch.eye(2).double()
        self.closed = self.A + self.B @ self.K
        scale = torch.linalg.eigvals(self.closed).abs().max()
        if scale > 0.9:  # keep the closed loop stable
            self.A, self.B = 0.9 * self.A / scale, 0.9 * self.B / scale
            self.closed = self.A + self.B @ self.K
        stage = self.Q + self.K.T @ self.R @ self.K
        kron = torch.kron(self.closed.T.contiguous(), self.closed.T.contiguous())
        identity = torch.eye(9, dtype=torch.float64)
        solution = torch.linalg.solve(identity - self.gamma * kron, stage.flatten())
        self.P = solution.reshape(3, 3)
        self.start = draw(5, 3)

    def states(self, horizon=400):
        """Rollouts ``[T, 5, 3]`` and weights ``gamma^t``; the tail beyond is below 1e-18."""
        states = [self.start]
        for _ in range(horizon - 1):
            states.append(states[-1] @ self.closed.T)
        weight = self.gamma ** torch.arange(horizon, dtype=torch.float64)
        return torch.stack(states), weight[:, None].expand(-1, 5)

    def action_gradient(self, s, a):
        s_next = s @ self.A.T + a @ self.B.T
        return -2 * a @ self.R - 2 * self.gamma * s_next @ self.P @ self.B

    def objective(self, gain):
        """J, the mean discounted return from the starts, as a function of K."""
        s, total = self.start, 0.0
        for t in range(400):
            a = s @ gain.T
            total = total - self.gamma**t * ((s @ self.Q * s).sum(-1) + (a @ self.R * a).sum(-1))
            s = s @ self.A.T + a @ self.B.T
        return total.mean()


def test_linear_quadratic_gradient_is_exact():
    """The deterministic policy gradient theorem with the exact Q gives dJ/dK."""
    problem = LinearQuadratic(0)
    gain = problem.K.clone().requires_grad_()
    (expected,) = torch.autograd.grad(problem.objective(gain), gain)
    states, weight = problem.states()
    slope = problem.action_gradient(states, states @ problem.K.T)
    gradient = torch.einsum("tb,tba,tbs->as", weight, slope, states) / 5
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_proposition_3_1_holds_for_perturbed_critics(seed):
    """40 quadratic perturbations Q^ = Q + [s, a] D [s, a]' of many sizes, each seed.

    ``delta = Q - Q^`` for the exact Q, whose TD error vanishes; the left side is the difference of
    the two policy gradients, both over the same discounted states.
    """
    problem = LinearQuadratic(seed)
    states, weight = problem.states()
    action = states @ problem.K.T
    policy = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    policy.weight.data.copy_(problem.K)
    for size in torch.logspace(-4, 2, 40).tolist():
        form = size * torch.randn(5, 5, dtype=torch.float64)
        inputs = torch.cat([states, action], -1)
        error = -(inputs @ (form + form.T))[..., 3:]  # grad_a (Q - Q^)
        # sum_t gamma^t = 1 / (1 - gamma): the theorem's normalisation
        left = torch.einsum("tb,tba,tbs->as", weight, error, states).norm() / 5
        right = policy_gradient_bound(
            policy,
            states.flatten(0, 1),
            error.flatten(0, 1),
            gamma=problem.gamma,
            weight=weight.flatten(),
        )
        assert 0 < left <= right


def test_bound_is_tight_in_one_dimension():
    """One state, one action, one parameter: both sides are the same number."""
    policy = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    bound = policy_gradient_bound(
        policy, torch.tensor([[2.0]]).double(), torch.tensor([[-3.0]]).double(), gamma=0.75
    )
    assert bound == 2 * 3 / 0.25


def test_bound_names_bad_input():
    policy = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\), got 1.0"):
        policy_gradient_bound(policy, torch.ones(1, 1), torch.ones(1, 1), gamma=1.0)
    with pytest.raises(ValueError, match=r"state must be \[B, D\]"):
        policy_gradient_bound(policy, torch.ones(1), torch.ones(1, 1), gamma=0.5)


# ---------------------------------------------------------------- Eq. 14


def test_oracle_gradient_error_equals_finite_differences():
    """Each action of 6 steps of Pendulum pushed by +-h, the policy answering what follows."""
    torch.manual_seed(3)
    horizon, gamma, h = 6, 0.9, 1e-6
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Tanh()).double()
    critic = nn.Linear(4, 1).double()
    policy = TensorDictModule(net, ["observation"], ["action"])
    qvalue = TensorDictModule(
        lambda s, a: critic(torch.cat([s, a], -1)).sin(),
        ["observation", "action"],
        ["state_action_value"],
    )
    angle = torch.tensor([0.3, 2.0], dtype=torch.float64)
    start = torch.stack([angle.cos(), angle.sin(), angle], -1)

    @torch.no_grad()
    def rollout(push):
        """States, actions and the return from each step on, with ``push[t]`` on action ``t``."""
        state, states, actions, rewards = start, [], [], []
        for t in range(horizon):
            action = net(state) + push[t]
            states.append(state)
            actions.append(action)
            rewards.append(pendulum_reward(state, action, state))
            state = pendulum_dynamics(state, action)
        tails = [
            sum(gamma ** (k - t) * rewards[k] for k in range(t, horizon)) for t in range(horizon)
        ]
        return states, actions, tails

    zero = torch.zeros(horizon, 1, 1, dtype=torch.float64)
    states, actions, _ = rollout(zero)
    expected = torch.zeros(2, dtype=torch.float64)
    for t in range(horizon):
        push = torch.zeros_like(zero)
        push[t] = h
        true = (rollout(push)[2][t] - rollout(-push)[2][t]) / (2 * h)
        value = [critic(torch.cat([states[t], actions[t] + shift], -1)).sin() for shift in (h, -h)]
        slope = (value[0] - value[1]) / (2 * h)
        expected += gamma**t * (true - slope).abs().sum(-1).detach() / horizon
    td = TensorDict(observation=start, batch_size=[2])
    error = oracle_gradient_error(
        policy, qvalue, OraclePendulum(), td, horizon=horizon, gamma=gamma
    )
    torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-8)


def test_oracle_gradient_error_names_bad_input():
    policy = TensorDictModule(lambda s: s[..., :1], ["observation"], ["action"])
    td = TensorDict(observation=torch.ones(1, 3), batch_size=[1])
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        oracle_gradient_error(policy, policy, OraclePendulum(), td, horizon=0, gamma=0.9)
    falling = TensorDictSequential(
        OraclePendulum(),
        TensorDictModule(
            lambda n: n[..., :1] < 2, [("next", "observation")], [("next", "terminated")]
        ),
    )
    with pytest.raises(ValueError, match="oracle terminated at step 0"):
        oracle_gradient_error(policy, policy, falling, td, horizon=3, gamma=0.9)


def test_oracle_gradient_error_of_a_reward_that_reads_the_state_alone():
    """x' = x + a, reward -x^2, at rest in 1: slopes -2 (g + g^2), -2 g^2 and 0; a flat critic."""
    policy = TensorDictModule(lambda s: 0 * s, ["observation"], ["action"])
    flat = TensorDictModule(lambda a: 0 * a, ["action"], ["state_action_value"])
    oracle = TensorDictSequential(
        TensorDictModule(torch.add, ["observation", "action"], [("next", "observation")]),
        TensorDictModule(lambda s: -s.square(), ["observation"], [("next", "reward")]),
    )
    td = TensorDict(observation=torch.ones(1, 1), batch_size=[1])
    with torch.no_grad():
        error = oracle_gradient_error(policy, flat, oracle, td, horizon=3, gamma=0.5)
    torch.testing.assert_close(error, torch.tensor([2 / 3]))
