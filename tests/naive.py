"""Algorithm 2 written plainly: every member, every critic, double backward through everything.

Shared by the tests of the loss and by the benchmarks. Takes ordinary modules and explicit noise,
and uses nothing of ``torchrl_mage``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

RHO: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": torch.square,
    "smooth_l1": lambda x: smooth_l1_loss(x, torch.zeros_like(x), reduction="none"),
}


def critic_loss(
    state: Tensor,
    actor: nn.Module,
    target_actor: nn.Module,
    critics: Sequence[nn.Module],
    target_critics: Sequence[nn.Module],
    next_state_fn: Callable[[Tensor, Tensor], Tensor],
    reward_fn: Callable[[Tensor, Tensor, Tensor], Tensor],
    terminated_fn: Callable[[Tensor], Tensor],
    target_noise: Tensor,
    *,
    lmbda: float,
    gradient_coeff: float,
    loss_function: str,
    gamma: float,
    horizon: int = 1,
) -> Tensor:
    """The scalar critic loss, all of it in one autograd graph; ``state`` is ``[B, D]``."""
    rho = RHO[loss_function]
    action = actor(state).detach().requires_grad_()
    target, weight = torch.zeros_like(state[:, :1]), torch.ones_like(state[:, :1])
    then, taken = state, action
    for step in range(horizon):
        next_state = next_state_fn(then, taken)
        target = target + weight * reward_fn(then, taken, next_state)
        weight = weight * gamma * (~terminated_fn(next_state)).to(state.dtype)
        then, taken = next_state, target_actor(next_state)
        if step == horizon - 1:
            taken = (taken + target_noise).clamp(-1, 1)
    last = torch.cat([then, taken], -1)
    target = target + weight * torch.minimum(*[critic(last) for critic in target_critics])
    total = torch.zeros((), dtype=state.dtype)
    for critic in critics:
        delta = (target - critic(torch.cat([state, action], -1))).squeeze(-1)
        (gradient,) = torch.autograd.grad(delta.sum(), action, create_graph=True)
        norm = gradient.square().sum(-1).sqrt()
        total = total + (gradient_coeff * rho(norm) + lmbda * rho(delta)).mean()
    return total


def actor_loss(state: Tensor, actor: nn.Module, critics: Sequence[nn.Module]) -> Tensor:
    """``-mean min_i Q_i(s, pi(s))``."""
    inputs = torch.cat([state, actor(state)], -1)
    return -torch.minimum(*[critic(inputs) for critic in critics]).mean()
