"""RAdam, and its step with clipped gradients as one function to call or compile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn


def radam(parameters: Iterable[nn.Parameter], **settings: Any) -> torch.optim.RAdam:
    """:class:`torch.optim.RAdam` that does the same compiled as eager.

    Eager, the rectification is computed in Python's floats; compiled, from the step counter, a
    float32 tensor, in which it cancels (0.6 % of the sixth step). So the counter is float64 here.

    Args:
        parameters: what is trained.
        **settings: ``lr``, ``weight_decay`` ...

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = radam([weight], lr=0.1)
        >>> optimizer.state[weight]["step"].dtype
        torch.float64
    """
    optimizer = torch.optim.RAdam(parameters, **settings)
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state["state"] = {
        index: {
            "step": torch.zeros((), dtype=torch.float64),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
        for index, parameter in enumerate(parameters)
    }
    optimizer.load_state_dict(state)
    return optimizer


def resetter(*optimizers: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that takes the optimisers back to the state that they are in now.

    Args:
        *optimizers: of parameters that somebody else resets.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = radam([weight], lr=0.1)
        >>> reset = resetter(optimizer)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> reset()
        >>> optimizer.state[weight]["step"].item()
        0.0
    """
    states = [deepcopy(optimizer.state_dict()) for optimizer in optimizers]

    def reset() -> None:
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(deepcopy(state))

    return reset


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
