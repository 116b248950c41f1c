"""Reading entries by their names, so that one that is missing is named with its reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor


def read_entries(
    tensordict: TensorDictBase, keys: Sequence[NestedKey], reader: str
) -> tuple[Tensor, ...]:
    """Entries of a tensordict.

    Args:
        tensordict: left as it is.
        keys: of the entries.
        reader: who reads them, for the message.

    Raises:
        ValueError: one is missing; its key, its reader and the keys that there are.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> read_entries(TensorDict(a=torch.ones(2)), ["a"], "the example")
        (tensor([1., 1.]),)
    """
    values = tuple(tensordict.get(key, None) for key in keys)
    for key, value in zip(keys, values, strict=True):
        if value is None:
            raise ValueError(
                f"{reader} reads {key!r}, which the tensordict does not hold; its keys are "
                f"{sorted(map(str, tensordict.keys(True, True)))}. Rename the entry or give "
                f"{reader} its key."
            )
    return values


class ReadingModule(TensorDictModule):
    """A ``TensorDictModule`` that names an input that is missing, where that hands on ``None``.

    Args:
        function: of the tensors under ``in_keys``.
        in_keys: what is read.
        out_keys: what is written.
        name: of the module, for the message.

    Raises:
        ValueError: at a call, where an input is missing.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> double = ReadingModule(lambda x: 2 * x, ["x"], ["y"], name="the double")
        >>> double(TensorDict(x=torch.ones(2)))["y"]
        tensor([2., 2.])
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        in_keys: Sequence[NestedKey],
        out_keys: Sequence[NestedKey],
        *,
        name: str,
    ) -> None:
        super().__init__(function, in_keys=list(in_keys), out_keys=list(out_keys))
        self.name = name

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> TensorDictBase:
        """Reads, calls and writes."""
        read_entries(tensordict, self.in_keys, self.name)
        return super().forward(tensordict, *args, **kwargs)
