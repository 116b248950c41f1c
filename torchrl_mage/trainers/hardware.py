"""Where a script computes, with how many threads and digits, from which seed, compiled or not."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torchrl.checkpoint import GlobalRNGState

from torchrl_mage.trainers.settings import SettingsError

# What tensordict says of itself while it is compiled; nothing for a user to act on.
TENSORDICT_WARNINGS = (
    r"Using lock_\(\) inside a compiled graph",
    r"torch._dynamo.config.inline_inbuilt_nn_modules is deprecated",
)


def set_up_torch(
    device: str,
    *,
    seed: int,
    threads: int | None = None,
    matmul_precision: Literal["highest", "high", "medium"] = "highest",
) -> torch.device:
    """Seeds PyTorch, sets its process-wide choices and returns the device.

    Args:
        device: ``"auto"`` is a GPU where there is one, else the CPU.
        seed: of the global generators.
        threads: of the CPU; ``None`` is one for each core that this process may use, or as many as
            the environment variable ``OMP_NUM_THREADS`` says.
        matmul_precision: of float32 products, see :func:`torch.set_float32_matmul_precision`:
            ``"highest"`` computes in float32, the others in TF32 or bfloat16 where the hardware
            has them.

    Raises:
        SettingsError: there is no such GPU.

    Example:
        >>> set_up_torch("cpu", seed=0)
        device(type='cpu')
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    chosen = torch.device(("cuda" if gpus else "cpu") if device == "auto" else device)
    if chosen.type == "cuda" and (chosen.index or 0) >= gpus:
        raise SettingsError(
            f"device = {device!r}: PyTorch sees {gpus} GPUs here; use device=cpu, or install a "
            "build of PyTorch that fits the GPU's driver."
        )
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision(matmul_precision)
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = usable_cores()
    if threads is not None:
        torch.set_num_threads(threads)
    return chosen


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use, by its affinity and its container's share (cgroup v2).

    Args:
        quota: the file with the share, microseconds in a period: ``"200000 100000"`` is two cores.

    Example:
        >>> usable_cores() >= 1
        True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    share = quota.read_text().split() if quota.is_file() else ["max"]
    if share[0] != "max":
        cores = min(cores, max(1, int(share[0]) // int(share[1])))
    return cores


Precision = Literal["float32", "bf16", "auto"]


def in_precision(
    function: Callable[..., Any], precision: Precision, device: torch.device
) -> Callable[..., Any]:
    """``function`` with products of this precision; what is stored and returned stays float32.

    Args:
        function: a loss. The optimiser's step is none of it: parameters are float32.
        precision: ``"bf16"`` multiplies in bfloat16 (``torch.autocast``), ``"auto"`` where the
            hardware is fast at it.
        device: where it runs. One without fast bfloat16 products stays in float32, with a warning.

    Example:
        >>> in_precision(torch.sin, "float32", torch.device("cpu")) is torch.sin
        True
    """
    fast = precision != "float32" and has_fast_bfloat16(device)
    if precision == "float32" or (precision == "auto" and not fast):
        return function
    if not fast:
        warnings.warn(
            f"precision=bf16: {device.type} has no fast bfloat16 products here, so they would be "
            "slower than float32's: the run stays in float32.",
            stacklevel=2,
        )
        return function

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return function(*args)

    return call


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def compiled(
    function: Callable[..., Any],
    *,
    enabled: bool,
    device: torch.device,
    precision: Precision = "float32",
    fullgraph: bool = True,
    batch_size: int | None = None,
    on_cpu: bool = True,
) -> Callable[..., Any]:
    """``function`` as one compiled graph, or as it is; logs how long the compilation took.

    On a CPU this needs a C++ compiler; without one the function stays eager, with a warning.

    Args:
        function: what to compile.
        enabled: ``False`` returns ``function`` itself.
        device: where it runs.
        precision: of its products, see :func:`in_precision`.
        fullgraph: whether a graph break is an error; an optimiser's step has one by design.
        batch_size: tensordicts of another last dimension run eager: few of them come, and a graph
            of their own would not pay.
        on_cpu: ``False`` leaves the function eager on a CPU.

    Example:
        >>> compiled(torch.sin, enabled=False, device=torch.device("cpu")) is torch.sin
        True
    """
    function = in_precision(function, precision, device)
    if not enabled or (device.type == "cpu" and not on_cpu):
        return function
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        warnings.warn(
            "compile=true needs a C++ compiler (g++, or the one that CXX names) and found none: "
            "running eager, about 1.6 times slower. Install g++, or pass compile=false.",
            stacklevel=2,
        )
        return function
    from tqdm.auto import tqdm  # of the extra "examples"

    # A graph's own generator draws one number at a time on a CPU. PyTorch's, which eager code has,
    # makes an update a twentieth faster.
    graph = torch.compile(
        function,
        fullgraph=fullgraph,
        dynamic=False,
        options={"fallback_random": device.type == "cpu"},
    )
    name = getattr(function, "__qualname__", repr(function))
    announced = False

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        nonlocal announced
        if batch_size is not None and args[0].shape[-1] != batch_size:
            return function(*args)
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
        tqdm.write(f"compiled {name} in {time.monotonic() - start:.1f} s", file=sys.stderr)
        return out

    return call


class RandomState(GlobalRNGState):
    """Python's, NumPy's and PyTorch's global generators, for a checkpoint.

    A machine with fewer GPUs than the one that saved takes the generators that it has, and warns.

    Example:
        >>> state = RandomState().state_dict()
        >>> drawn = torch.rand(())
        >>> RandomState().load_state_dict(state)
        >>> torch.rand(()) == drawn
        tensor(True)
    """

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Sets the generators."""
        saved = state_dict.get("torch_cuda", [])
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if len(saved) > here:
            warnings.warn(
                f"the checkpoint has the random generators of {len(saved)} GPUs, this machine has "
                f"{here}: the run goes on, with other draws than there.",
                stacklevel=2,
            )
        state = {key: value for key, value in state_dict.items() if key != "torch_cuda"}
        super().load_state_dict(state | ({"torch_cuda": saved[:here]} if saved[:here] else {}))
