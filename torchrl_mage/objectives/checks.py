"""What a loss says to a user whose modules or data do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec


def check_nonnegative(**values: float) -> None:
    """Refuses a setting that is negative or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}.")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuses a value that is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}.")


def read_entry(tensordict: TensorDictBase, key: NestedKey, reader: str) -> Tensor:
    """An entry, or an error that names it, who reads it, and what there is."""
    value = tensordict.get(key, None)
    if value is None:
        raise ValueError(
            f"{reader} {key!r}, which the tensordict does not hold; its keys are "
            f"{sorted(map(str, tensordict.keys(True, True)))}."
        )
    return value


def run_network(
    name: str, network: Callable[..., TensorDictBase], tensordict: TensorDictBase, *params: Any
) -> TensorDictBase:
    """Calls a network; one that cannot take what it is given is named, with the shapes."""
    if torch.compiler.is_compiling():
        return network(tensordict, *params)
    try:
        return network(tensordict, *params)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shapes = {key: tuple(value.shape) for key, value in tensordict.items(True, True)}
        raise ValueError(f"the {name} cannot take inputs of shape {shapes}: {error}") from error


def check_dtype(key: NestedKey, value: Tensor, dtype: torch.dtype, owner: str) -> None:
    """Refuses a floating entry of another dtype than the networks'."""
    if value.is_floating_point() and value.dtype != dtype:
        raise ValueError(
            f"entry {key!r} has dtype {value.dtype}, {owner} {dtype}; convert one of them."
        )


def check_written(value: Tensor | None, key: NestedKey, module: str, argument: str) -> Tensor:
    """Refuses a module that does not write ``key``."""
    if value is None:
        raise ValueError(
            f"the {module} writes no {key!r}; name the key it writes with set_keys({argument}=...)."
        )
    return value


def check_action(action: Tensor, key: NestedKey, batch_size: torch.Size, bound: Tensor) -> Tensor:
    """Refuses an actor's action that is not ``[*B, A]``, or is not what the bounds are of."""
    if action.shape[:-1] != batch_size:
        raise ValueError(
            f"the actor's {key!r} has shape {tuple(action.shape)} over states of batch size "
            f"{list(batch_size)}; the batch size must be all its dimensions but the last."
        )
    if bound.dim() and bound.shape[-1] not in (1, action.shape[-1]):
        raise ValueError(
            f"the actor's {key!r} has {action.shape[-1]} features, action_spec {bound.shape[-1]}."
        )
    return action


def check_weights(weights: Tensor, key: NestedKey, loss: Tensor) -> Tensor:
    """The states' weights in the loss's shape ``[*B]`` and dtype, or an error."""
    if weights.numel() != loss.numel():
        raise ValueError(
            f"{key!r} has shape {tuple(weights.shape)}; one weight for each of the states of batch "
            f"size {list(loss.shape)} is expected."
        )
    return weights.reshape(loss.shape).to(loss)


def check_column(
    key: NestedKey, value: Tensor, batch_size: torch.Size, dtype: torch.dtype, remedy: str = ""
) -> None:
    """Refuses what the world model wrote in another shape than ``[*B, 1]`` or another dtype."""
    shape = (*batch_size, 1)
    if value.shape != shape:
        raise ValueError(
            f"the world model's {('next', key)!r} has shape {tuple(value.shape)}, expected {shape}."
        )
    if value.dtype != dtype:
        raise ValueError(
            f"the world model's {('next', key)!r} has dtype {value.dtype}, expected {dtype}"
            f"{remedy}."
        )


def check_next_entry(key: NestedKey, now: Tensor, then: Tensor | None) -> None:
    """Refuses a next state that lacks an entry of the state, or has it otherwise."""
    if then is None:
        raise ValueError(
            f"actor or critics read {key!r}, but the world model writes no {('next', key)!r}: "
            "append the module that computes it from the next state (for a normalised observation, "
            "normalizer.on(('next', 'observation'), ('next', 'normalized_observation')))."
        )
    if then.shape != now.shape or then.dtype != now.dtype:
        raise ValueError(
            f"the world model's {('next', key)!r} has shape {tuple(then.shape)} and dtype "
            f"{then.dtype}, the current state's {tuple(now.shape)} and {now.dtype}."
        )


def check_bounds(low: Tensor, high: Tensor) -> None:
    """Refuses action bounds that are no bounded box."""
    if not (low.isfinite().all() and high.isfinite().all() and (low < high).all()):
        raise ValueError(
            f"MAGE needs a bounded continuous action, got the bounds {low.tolist()} and "
            f"{high.tolist()}. Rescale the environment's actions to a box such as [-1, 1]."
        )


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
