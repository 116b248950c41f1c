"""An optimiser's step with its gradients clipped, as one function to call or compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def clipped_step(optimizer: torch.optim.Optimizer, clip_value: float) -> Callable[[], None]:
    """One step of ``optimizer`` with each gradient element clipped at ``+-clip_value``.

    Args:
        optimizer: whose parameters have gradients when the step is taken.
        clip_value: positive bound of a gradient element.

    Returns:
        A function without arguments; it leaves the gradients as they are, clipped.

    Raises:
        ValueError: ``clip_value`` is not positive.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> step = clipped_step(torch.optim.SGD([weight], lr=0.1), clip_value=5.0)
        >>> (weight * torch.tensor([2.0, 100.0])).sum().backward()
        >>> step()
        >>> weight.data
        tensor([0.8000, 0.5000])
    """
    if not clip_value > 0:
        raise ValueError(f"clip_value must be positive, got {clip_value}.")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        nn.utils.clip_grad_value_(parameters, clip_value)
        optimizer.step()

    return step
