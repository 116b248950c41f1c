"""Means of training diagnostics between two reports."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class RunningMeans:
    """Adds tensors up where they are, without waiting for the device, and averages on demand.

    Example:
        >>> import torch
        >>> means = RunningMeans()
        >>> means.add(loss=torch.tensor([1.0, 3.0]))
        >>> means.add(loss=torch.tensor([4.0]))
        >>> means.pop()
        {'loss': 3.0}
        >>> means.pop()
        {}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: Tensor) -> None:
        """Takes in the mean of each tensor, any shape."""
        for name, value in values.items():
            mean = value.detach().mean()
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean
            self._counts[name] = self._counts.get(name, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """The sums and counts since the last :meth:`pop`."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def pop(self) -> dict[str, float]:
        """The averages since the last call."""
        out = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return out
