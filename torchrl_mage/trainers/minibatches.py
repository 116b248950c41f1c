"""Whole epochs of minibatches, each ensemble member with a permutation of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def member_minibatches(
    size: int,
    *,
    ensemble_size: int,
    batch_size: int,
    min_batches: int,
    exact: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Indices of minibatches for all members at once (appendix D.2 and the authors' code).

    Each epoch permutes the data anew for each member. An incomplete last batch is dropped unless it
    is the epoch's only one.

    Args:
        size: number of transitions.
        ensemble_size: number of members ``E``.
        batch_size: transitions in a minibatch.
        min_batches: epochs run until at least so many batches were given.
        exact: whether to stop at ``min_batches`` within an epoch.
        device: where the indices lie.

    Yields:
        int64 ``[E, min(batch_size, size)]``.

    Example:
        >>> batches = list(
        ...     member_minibatches(10, ensemble_size=2, batch_size=4, min_batches=3)
        ... )
        >>> len(batches), batches[0].shape
        (4, torch.Size([2, 4]))
    """
    if min(size, ensemble_size, batch_size, min_batches) < 1:
        raise ValueError(
            "size, ensemble_size, batch_size and min_batches must be at least 1, got "
            f"{(size, ensemble_size, batch_size, min_batches)}."
        )
    width = min(batch_size, size)
    batches_per_epoch = size // width
    given = 0
    for _ in range(math.ceil(min_batches / batches_per_epoch)):
        permutations = torch.rand(ensemble_size, size, device=device).argsort(1)
        for start in range(0, batches_per_epoch * width, width):
            if exact and given == min_batches:
                return
            given += 1
            yield permutations[:, start : start + width]
