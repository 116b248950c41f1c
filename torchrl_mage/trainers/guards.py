"""Guards that stop a run before a bad number travels."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase


def check_finite(values: TensorDictBase, *, step: int, source: str) -> None:
    """Refuses NaN and infinity.

    Args:
        values: floating entries are tested, nested ones too.
        step: environment step, for the message.
        source: who made the values, for the message.

    Raises:
        FloatingPointError: an entry is not finite; the message names it and its first bad value.

    Example:
        >>> from tensordict import TensorDict
        >>> check_finite(TensorDict(reward=torch.tensor([1.0, float("nan")])), step=7, source="env")
        Traceback (most recent call last):
            ...
        FloatingPointError: step 7: the env gave reward = nan (1 of 2 values not finite). ...
    """
    for key, value in values.items(include_nested=True, leaves_only=True):
        if not value.is_floating_point() or torch.isfinite(value).all():
            continue
        bad = value[~torch.isfinite(value)]
        name = ".".join(key) if isinstance(key, tuple) else key
        raise FloatingPointError(
            f"step {step}: the {source} gave {name} = {bad[0].item()} ({bad.numel()} of "
            f"{value.numel()} values not finite). Nothing was trained on it. An environment gives "
            "such values when it divides by zero or leaves its bounds, a policy when it diverged."
        )
