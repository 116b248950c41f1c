"""What a loss may be built with."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec


def check_nonnegative(**values: float) -> None:
    """Refuses a setting that is negative or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}.")


def check_positive_count(**values: int) -> None:
    """Refuses a setting that is no whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuses a value that is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}.")


def check_no_batch_norm(name: str, network: nn.Module) -> None:
    """Refuses batch norm in training, whose statistics a functional call would not keep."""
    for path, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"the {name} has batch norm ({path or type(module).__name__}), which couples the "
                "states of a batch, so that no state has an action-gradient of its own: use layer "
                "norm (torch.nn.LayerNorm), or call eval() on it to freeze its statistics."
            )


def action_box(
    action_spec: TensorSpec | None,
    bounds: tuple[float, float] | None,
    key: NestedKey,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """The action's bounds, in the dtype and on the device of the networks.

    Args:
        action_spec: bounded, composite or batched perhaps; exclusive with ``bounds``.
        bounds: ``(low, high)``.
        key: of the action in a composite spec.
        like: a parameter.

    Raises:
        ValueError: both are given or neither, or they are no bounded box.
    """
    if (action_spec is None) == (bounds is None):
        raise ValueError(
            "One of 'bounds' and 'action_spec' must be provided, but not both or none. Got "
            f"bounds={bounds} and action_spec={action_spec}."
        )
    if action_spec is not None:
        space = bounded_action_spec(action_spec, key).space
        bounds = space.low, space.high
    assert bounds is not None
    low, high = (torch.as_tensor(b, dtype=like.dtype, device=like.device) for b in bounds)
    if (low > high).any():
        raise ValueError(f"the action's low bound higher than its high bound: {bounds}.")
    if not (low.isfinite().all() and high.isfinite().all() and (low < high).all()):
        raise ValueError(
            f"MAGE needs a bounded continuous action, got the bounds {low.tolist()} and "
            f"{high.tolist()}. Rescale the environment's actions to a box such as [-1, 1]."
        )
    return low, high


def bounded_action_spec(spec: TensorSpec, key: NestedKey) -> TensorSpec:
    """The bounded spec of one action vector, out of one that may be composite or batched."""
    if isinstance(spec, Composite):
        keys = sorted(map(str, spec.keys(True, True)))
        if key not in spec.keys(True, True):
            raise ValueError(f"action_spec has {keys}, not {key!r}; pass the action's own spec.")
        spec = spec[key]
    if not isinstance(spec, Bounded):
        raise ValueError(
            f"MAGE needs a bounded continuous action, got the spec {spec}. Rescale the "
            "environment's actions to a box, or pass bounds=(low, high)."
        )
    return spec[(0,) * (spec.ndim - 1)]
