"""How far a critic's action-gradient is from the truth, and what that costs the policy gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap


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
