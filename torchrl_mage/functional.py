"""The mathematics of MAGE (arXiv:2004.14309) on plain tensors.

Shape suffixes: ``E`` ensemble members, ``B`` batch elements (any number of dimensions), ``D``
observation features, ``A`` action features, ``C`` critics, ``K`` categories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import gumbel_softmax
from torchrl.objectives.utils import distance_loss

Aux = TypeVar("Aux")
Inputs = TypeVar("Inputs")


def bounded_log_variance(raw: Tensor, low: float, high: float) -> Tensor:
    """Squashes a network's output into the interval of admissible log-variances.

    Args:
        raw: unbounded output, any shape.
        low: smallest log-variance.
        high: largest log-variance.

    Example:
        >>> bounded_log_variance(torch.zeros(1), -5.0, -1.0)
        tensor([-3.])
    """
    return low + (high - low) * raw.sigmoid()


def gaussian_nll(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    r"""Negative log-likelihood of a diagonal Gaussian, elementwise, doubled and without constant.

    .. math:: (\mu - x)^2 / \sigma^2 + \log \sigma^2

    The maximum-likelihood objective of the world model (appendix D.2).

    Args:
        mean: ``[*B, D]``.
        log_var: ``[*B, D]``.
        target: ``[*B, D]``.

    Returns:
        ``[*B, D]``.

    Example:
        >>> gaussian_nll(torch.zeros(1), torch.zeros(1), torch.full((1,), 2.0))
        tensor([4.])
    """
    return (mean - target).square() * (-log_var).exp() + log_var


def mixture_moments(mean_EBD: Tensor, var_EBD: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of a uniform mixture of Gaussians.

    .. math:: \bar\mu = E[\mu_e], \quad \bar\sigma^2 = E[\sigma_e^2] + Var[\mu_e]

    Args:
        mean_EBD: the members' means, ``[E, *B, D]``.
        var_EBD: the members' variances, ``[E, *B, D]``.

    Returns:
        The mixture's mean and variance, each ``[*B, D]``.

    Example:
        >>> mixture_moments(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
        (tensor([0.]), tensor([2.]))
    """
    mean_BD = mean_EBD.mean(0)
    return mean_BD, (var_EBD + (mean_EBD - mean_BD).square()).mean(0)


def straight_through_one_hot(logits: Tensor, temperature: float) -> Tensor:
    r"""Draws from a categorical variable, exactly, with the gradient of the relaxed draw.

    .. math:: \text{onehot} \arg\max_k y_k, \qquad y = \text{softmax}((\ell + g) / \tau)

    with Gumbel noise ``g``: the straight-through estimator of arXiv:1611.01144 on the concrete
    distribution that appendix C names for discrete states.

    Args:
        logits: unnormalised log-probabilities, ``[*B, K]``.
        temperature: :math:`\tau`, above 0. A lower one has less bias and more variance.

    Returns:
        ``[*B, K]``, exactly one-hot; its derivative is that of ``y``.

    Example:
        >>> straight_through_one_hot(torch.tensor([-100.0, 100.0]), 1.0)
        tensor([0., 1.])
    """
    soft = gumbel_softmax(logits, tau=temperature)
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())  # in this order no rounding is left in the value


def balanced_slots(
    batch_size: int, ensemble_size: int, device: torch.device | None = None
) -> tuple[Tensor, int]:
    """Deals a batch to the members of an ensemble at random, as equally as possible.

    Every element goes to each member with probability ``1 / ensemble_size``; the shares of two
    members differ by one element at most. Slots are numbered member by member, ``rows`` slots each,
    so that the dealt batch is a dense ``[ensemble_size, rows]`` array.

    Args:
        batch_size: number of elements ``B``.
        ensemble_size: number of members ``E``.
        device: where the result lies.

    Returns:
        The slot of each element, int64 of shape ``[B]``, and ``rows = ceil(B / E)``. The member of
        an element is ``slot // rows``.

    Example:
        >>> slot, rows = balanced_slots(6, 3)
        >>> (slot // rows).bincount()
        tensor([2, 2, 2])
    """
    whole, extra = batch_size // ensemble_size, batch_size % ensemble_size
    # rand().argsort(): inductor cannot index with an unsliced randperm.
    order = torch.rand(batch_size, device=device).argsort()
    if not extra:
        return order, whole
    rows = whole + 1
    members = torch.arange(ensemble_size, device=device)
    full = (members[:, None] * rows + torch.arange(whole, device=device)).flatten()
    lucky = torch.rand(ensemble_size, device=device).argsort()[:extra]
    return torch.cat([full, lucky * rows + whole])[order], rows


def grouped_slots(member_B: Tensor, ensemble_size: int) -> tuple[Tensor, int]:
    """Gathers the elements of each member, numbered as in :func:`balanced_slots`.

    Args:
        member_B: the member of each element, int64 of shape ``[B]``.
        ensemble_size: number of members ``E``.

    Returns:
        The slot of each element, ``[B]``, and ``rows``, the size of the largest group.

    Example:
        >>> grouped_slots(torch.tensor([2, 0, 2]), 3)
        (tensor([4, 0, 5]), 2)
    """
    order = member_B.argsort(stable=True)
    size_E = member_B.bincount(minlength=ensemble_size)
    rows = int(size_E.max())
    rank = (
        torch.arange(len(order), device=order.device) - (size_E.cumsum(0) - size_E)[member_B[order]]
    )
    return torch.empty_like(order).scatter(0, order, member_B[order] * rows + rank), rows


def value_and_action_gradient(
    function: Callable[[Inputs], tuple[Tensor, Aux]], action: Inputs
) -> tuple[Tensor, Inputs, Aux]:
    """A function's value and its gradient with respect to the action.

    The gradient stays differentiable in whatever else the function depends on: the critic's
    parameters reach the loss through it (the second derivative of Algorithm 2). Uses
    :func:`torch.func.grad`, which works in eager mode and inside one compiled graph.

    Args:
        function: maps an action ``[*B, A]`` to a value ``[*B]``, each element's value depending on
            its own action alone, and a tuple of tensors that the caller wants to keep.
        action: ``[*B, A]``, or a TensorDict of all that the function is differentiated in.

    Returns:
        The value ``[*B]``, its gradient in the shape of ``action`` and what else the function
        returned.

    Example:
        >>> value, gradient, _ = value_and_action_gradient(
        ...     lambda a: (a.square().sum(-1), ()), torch.tensor([[1.0, 2.0]])
        ... )
        >>> value, gradient
        (tensor([5.]), tensor([[2., 4.]]))
    """

    def total(action: Inputs) -> tuple[Tensor, tuple[Tensor, Aux]]:
        value, aux = function(action)
        return value.sum(), (value, aux)

    gradient, (value, aux) = torch.func.grad(total, has_aux=True)(action)
    return value, gradient, aux


def target_gradient_paths(
    imagine: Callable[[Tensor], tuple[Any, Tensor]],
    next_action: Callable[[Any], Any],
    next_value: Callable[[Any, Any], Tensor],
    action: Tensor,
    *,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The action-gradient of the target, split into its paths (Eq. 13, Fig. 9).

    .. math::
        \frac{dy}{da} = \frac{dr}{da}
        + \gamma \frac{ds'}{da} \frac{\partial Q}{\partial s'}
        + \gamma \frac{ds'}{da} \frac{d\pi}{ds'} \frac{\partial Q}{\partial a'}

    A diagnostic, not part of the loss, which needs their sum alone.

    Args:
        imagine: the action ``[*B, A]`` to the next state ``[*B, D]`` and the reward ``[*B]``. Next
            state and next action may be any container that has a ``detach()``.
        next_action: the next state to the next action ``[*B, A]``.
        next_value: next state and next action to the value ``[*B]``, 0 where the state is terminal.
        action: ``[*B, A]``.
        gamma: discount factor.

    Returns:
        The paths through the reward, the next state and the next action, each ``[*B, A]``.

    Example:
        >>> target_gradient_paths(
        ...     lambda a: (2 * a, a.squeeze(-1)),
        ...     lambda s: 3 * s,
        ...     lambda s, a: (s + 10 * a).squeeze(-1),
        ...     torch.ones(1, 1),
        ...     gamma=0.5,
        ... )
        (tensor([[1.]]), tensor([[1.]]), tensor([[30.]]))
    """
    with torch.enable_grad():
        action = action.detach().requires_grad_()
        state, reward = imagine(action)
        follow_up = next_action(state)
        with torch.random.fork_rng([action.device] if action.is_cuda else []):
            through_state = next_value(state, follow_up.detach())
        through_action = next_value(state.detach(), follow_up)  # of the same draws
        parts = (reward, gamma * through_state, gamma * through_action)
        reward_path, state_path, action_path = (
            torch.autograd.grad(
                part.sum(), action, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            if part.requires_grad
            else torch.zeros_like(action)
            for part in parts
        )
    return reward_path, state_path, action_path


def mage_critic_loss(
    td_error_CB: Tensor,
    gradient_error_CBA: Tensor | None,
    *,
    lmbda: float,
    gradient_coeff: float,
    loss_function: str,
) -> Tensor:
    r"""The critics' objective of Algorithm 2, summed over the critics.

    .. math::
        \sum_i c\,\rho(\|\nabla_a \delta_i\|_2) + \lambda\,\rho(\delta_i)

    with :math:`\rho` the Huber loss (D.2) or another distance from zero.

    Args:
        td_error_CB: :math:`\delta_i = y - Q_i`, ``[C, *B]``.
        gradient_error_CBA: :math:`\nabla_a \delta_i`, ``[C, *B, A]``; ``None`` where
            ``gradient_coeff`` is 0.
        lmbda: weight of the TD error.
        gradient_coeff: weight ``c`` of the action-gradient error, 1 in the paper and 0 for Dyna.
        loss_function: ``"smooth_l1"``, ``"l2"`` or ``"l1"``.

    Returns:
        ``[*B]``.

    Example:
        >>> mage_critic_loss(
        ...     torch.tensor([[2.0]]), torch.tensor([[[3.0, 4.0]]]),
        ...     lmbda=0.5, gradient_coeff=1.0, loss_function="l2",
        ... )
        tensor([27.])
    """
    loss_CB = lmbda * distance_loss(td_error_CB, torch.zeros_like(td_error_CB), loss_function)
    if gradient_error_CBA is not None:
        # vector_norm has the subgradient 0 at 0, so that a perfect critic is a fixed point.
        norm_CB = torch.linalg.vector_norm(gradient_error_CBA, dim=-1)
        loss_CB = loss_CB + gradient_coeff * distance_loss(
            norm_CB, torch.zeros_like(norm_CB), loss_function
        )
    return loss_CB.sum(0)


def taylor_td_loss(
    td_error_CB: Tensor,
    action_gradient_error_CBA: Tensor,
    state_gradient_error_CBD: Tensor,
    *,
    action_variance: float,
    state_variance: float,
) -> Tensor:
    r"""The critics' objective of Taylor TD (arXiv:2302.14182), summed over the critics.

    .. math::
        \frac12 \sum_i \delta_i^2 + \lambda_a \|\nabla_a \delta_i\|^2
        + \lambda_s \|\nabla_s \delta_i\|^2

    The TD update at an action and a state perturbed by independent noise, expected over the noise,
    with :math:`\delta` and :math:`\nabla_\theta Q` each expanded to first order, is

    .. math::
        \delta \nabla_\theta Q + \lambda_a \nabla_\theta \nabla_a Q\, \nabla_a \delta
        + \lambda_s \nabla_\theta \nabla_s Q\, \nabla_s \delta

    which is minus the gradient of the objective, the target held constant.

    Args:
        td_error_CB: :math:`\delta_i = y - Q_i`, ``[C, *B]``.
        action_gradient_error_CBA: :math:`\nabla_a \delta_i`, ``[C, *B, A]``.
        state_gradient_error_CBD: :math:`\nabla_s \delta_i`, ``[C, *B, D]``, or of no features.
        action_variance: :math:`\lambda_a`, variance of the action's perturbation.
        state_variance: :math:`\lambda_s`, of the state's.

    Returns:
        ``[*B]``.

    Example:
        >>> taylor_td_loss(
        ...     torch.tensor([[2.0]]), torch.tensor([[[3.0]]]), torch.tensor([[[1.0]]]),
        ...     action_variance=0.5, state_variance=0.1,
        ... )
        tensor([4.3000])
    """
    loss_CB = td_error_CB.square()
    loss_CB = loss_CB + action_variance * action_gradient_error_CBA.square().sum(-1)
    loss_CB = loss_CB + state_variance * state_gradient_error_CBD.square().sum(-1)
    return 0.5 * loss_CB.sum(0)
