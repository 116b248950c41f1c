"""The paper's optimiser (arXiv:2004.14309, appendix D.2)."""

from __future__ import annotations

from collections.abc import Iterable
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
