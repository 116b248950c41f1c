"""Where a script computes, with how many threads and digits, and from which seed."""

from __future__ import annotations

from typing import Literal

import torch

from torchrl_mage.trainers.settings import SettingsError


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
        threads: of the CPU; ``None`` leaves PyTorch's choice, one a core.
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
    if threads is not None:
        torch.set_num_threads(threads)
    return chosen
