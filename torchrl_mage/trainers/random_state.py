"""The random generators of a run, also of one that goes on where there are fewer of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torchrl.checkpoint import GlobalRNGState


class RandomState(GlobalRNGState):
    """Python's, NumPy's and PyTorch's global generators, for a :class:`Checkpointer`.

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
