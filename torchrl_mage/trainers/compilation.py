"""torch.compile where it can work, with a word to the user where it can't."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch


def compiled(
    function: Callable[..., Any], *, enabled: bool, device: torch.device
) -> Callable[..., Any]:
    """``function`` as one compiled graph, or as it is.

    On a CPU this needs a C++ compiler; without one the function stays eager, with a warning.

    Args:
        function: what to compile; a graph break is an error.
        enabled: ``False`` returns ``function`` itself.
        device: where it runs.

    Example:
        >>> compiled(torch.sin, enabled=False, device=torch.device("cpu")) is torch.sin
        True
    """
    if not enabled:
        return function
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        warnings.warn(
            "compile=true needs a C++ compiler (g++, or the one that CXX names) and found none: "
            "running eager, about 1.6 times slower. Install g++, or pass compile=false.",
            stacklevel=2,
        )
        return function
    return torch.compile(function, fullgraph=True, dynamic=False)
