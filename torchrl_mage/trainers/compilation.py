"""torch.compile where it can work, with a word to the user where it can't."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm

# What tensordict says of itself while it is compiled; nothing for a user to act on.
TENSORDICT_WARNINGS = (
    r"Using lock_\(\) inside a compiled graph",
    r"torch._dynamo.config.inline_inbuilt_nn_modules is deprecated",
)


def compiled(
    function: Callable[..., Any],
    *,
    enabled: bool,
    device: torch.device,
    fullgraph: bool = True,
) -> Callable[..., Any]:
    """``function`` as one compiled graph, or as it is; says how long the compilation took.

    On a CPU this needs a C++ compiler; without one the function stays eager, with a warning.

    Args:
        function: what to compile.
        enabled: ``False`` returns ``function`` itself.
        device: where it runs.
        fullgraph: whether a graph break is an error; an optimiser's step has one by design.

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
    graph = torch.compile(function, fullgraph=fullgraph, dynamic=False)
    name = getattr(function, "__qualname__", repr(function))
    announced = False

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        nonlocal announced
        if announced:
            return graph(*args)
        announced = True
        start = time.monotonic()
        # The backward pass too, which would else be compiled, unannounced, when it is first run.
        eager_backward = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
        with eager_backward, warnings.catch_warnings():
            for message in TENSORDICT_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            out = graph(*args)
        seconds = time.monotonic() - start
        tqdm.write(f"compiled {name} in {seconds:.1f} s", file=sys.stderr)
        return out

    return call
