"""How far a critic's action-gradient is from the truth, and what that costs the policy gradient."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torchrl.envs.utils import step_mdp


def policy_gradient_bound(
    policy: nn.Module,
    state: Tensor,
    action_gradient_error: Tensor,
    *,
    gamma: float,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Bound on the error of a deterministic policy gradient (arXiv:2004.14309, Prop. 3.1).

    .. math::
        \|\nabla_\theta J - \widehat\nabla_\theta J\| \le
        \frac{L_\pi}{1 - \gamma} E_{s \sim d^\pi_\mu} \|\nabla_a \delta(s, a)|_{a = \pi(s)}\|

    in the 2-norm. The expectation over the discounted state distribution is the weighted mean over
    ``state``: take the states of rollouts of the policy, the one at time ``t`` with weight
    :math:`\gamma^t`. The Lipschitz constant :math:`L_\pi` of the policy *in its parameters* is
    estimated by the largest spectral norm of :math:`\partial \pi_\theta(s) / \partial \theta` over
    ``state``. For the distribution that the weights describe, both are exact.

    Args:
        policy: maps ``[D]`` to ``[A]``; its parameters are :math:`\theta`.
        state: ``[B, D]``.
        action_gradient_error: :math:`\nabla_a \delta` at ``a = policy(state)``, ``[B, A]``.
        gamma: discount factor in [0, 1).
        weight: weight of each state, ``[B]``, non-negative; equal where ``None``.

    Raises:
        ValueError: ``gamma`` is outside [0, 1) or a shape does not match.

    Example:
        >>> policy = nn.Linear(1, 1, bias=False)  # d pi / d theta = s
        >>> state = torch.tensor([[1.0], [2.0]])
        >>> policy_gradient_bound(policy, state, torch.tensor([[1.0], [-3.0]]), gamma=0.5)
        tensor(8.)
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma}.")
    if state.dim() != 2 or action_gradient_error.shape[:-1] != state.shape[:-1]:
        raise ValueError(
            f"state must be [B, D] and action_gradient_error [B, A], got {tuple(state.shape)} and "
            f"{tuple(action_gradient_error.shape)}."
        )
    parameters = {name: value.detach() for name, value in policy.named_parameters()}
    jacobian = vmap(jacrev(lambda p, s: functional_call(policy, p, (s,))), in_dims=(None, 0))
    columns = [part.flatten(2) for part in jacobian(parameters, state).values()]
    lipschitz = torch.linalg.matrix_norm(torch.cat(columns, -1), 2).max()
    weight = torch.ones_like(state[:, 0]) if weight is None else weight
    error = torch.linalg.vector_norm(action_gradient_error, dim=-1)
    return lipschitz / (1 - gamma) * (weight * error).sum() / weight.sum()


def oracle_gradient_error(
    policy: TensorDictModuleBase,
    qvalue: TensorDictModuleBase,
    oracle: TensorDictModuleBase,
    tensordict: TensorDictBase,
    *,
    horizon: int,
    gamma: float,
) -> Tensor:
    r"""Error of a critic's action-gradient along trajectories (arXiv:2004.14309, Eq. 14).

    .. math::
        L = \frac{1}{H} \sum_{t=0}^{H-1} \gamma^t
        \|\nabla_a G(s_t, a_t) - \nabla_a \hat Q(s_t, a_t)\|_1

    with ``G`` the empirical discounted return from ``t`` to the end of the episode, differentiated
    through the true dynamics and the policy (appendix D.2). Deterministic policy and dynamics.

    Args:
        policy: writes ``action``, in [-1, 1]; reads the state.
        qvalue: the (first) critic, writes ``state_action_value`` ``[*B, 1]``.
        oracle: the true dynamics and reward as a world model, such as
            :class:`~torchrl_mage.OraclePendulum`, of a task that does not terminate.
        tensordict: the first states, batch size ``[*B]``.
        horizon: length ``H`` of the episode.
        gamma: discount factor.

    Returns:
        ``[*B]``, the error of each trajectory.

    Raises:
        ValueError: ``horizon`` is below 1, or the oracle terminates.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_mage import OraclePendulum
        >>> policy = TensorDictModule(lambda s: 0 * s[..., :1], ["observation"], ["action"])
        >>> flat = TensorDictModule(lambda a: 0 * a, ["action"], ["state_action_value"])
        >>> upright = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]]), batch_size=[1])
        >>> oracle_gradient_error(policy, flat, OraclePendulum(), upright, horizon=5, gamma=0.99)
        tensor([0.])
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    # A push of zero on each action: since the past does not depend on it, the gradient of the whole
    # return with respect to the push at t is gamma^t times that of the return from t on.
    pushes, visited, total = [], [], torch.zeros(())
    state = tensordict.clone(False)
    for t in range(horizon):
        action = policy(state.clone(False)).get("action")
        pushes.append(torch.zeros_like(action).requires_grad_())
        visited.append(state.clone(False).set("action", action).detach())
        out = oracle(state.set("action", action + pushes[-1]))
        if out.get(("next", "terminated"), torch.zeros(())).any():
            raise ValueError(f"the oracle terminated at step {t}; Eq. 14 takes whole episodes.")
        total = total + gamma**t * out.get(("next", "reward")).sum()
        state = step_mdp(out, exclude_done=True, exclude_reward=True, exclude_action=True)
    true_slope = torch.stack(torch.autograd.grad(total, pushes))

    states = TensorDict.stack(visited)
    action = states.get("action").requires_grad_()
    value = qvalue(states.set("action", action)).get("state_action_value")
    (slope,) = torch.autograd.grad(value.sum(), action)
    discount = gamma ** torch.arange(horizon, dtype=slope.dtype, device=slope.device)
    discount = discount.reshape(-1, *(1,) * (slope.dim() - 1))
    return (true_slope - discount * slope).abs().sum(-1).sum(0) / horizon
