"""The layers whose outputs are read as numbers keep their digits under ``torch.autocast``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_full_precision(layer: Callable[..., Tensor], *inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """``layer(*inputs)`` in ``dtype``, whatever precision autocast has set around it.

    bfloat16 has 8 significant bits: a value of -300 would be known to 1 or 2. Hidden layers can do
    with that; values, actions and predicted differences, which the last layer writes, cannot.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     rough = torch.mm(torch.ones(1, 1), torch.ones(1, 1))
        ...     exact = in_full_precision(torch.mm, rough, torch.ones(1, 1), dtype=torch.float32)
        >>> rough.dtype, exact.dtype
        (torch.bfloat16, torch.float32)
    """
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return layer(*inputs)
    with torch.autocast(device, enabled=False):
        return layer(*(value.to(dtype) for value in inputs))
