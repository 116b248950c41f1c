"""The one contract between a loss, its networks and its world model, and all that checks it.

A loss asks at its door, before it computes: :func:`read_states` of each batch,
:func:`check_agent` once for each kind of batch. What it computes with afterwards is
:func:`imagine` and :func:`ended`, which check nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

Out = TypeVar("Out")


class TransitionKeys(Protocol):
    """The keys of a transition, ``reward`` and what follows it under ``"next"``."""

    action: NestedKey
    state_action_value: NestedKey
    reward: NestedKey
    terminated: NestedKey
    termination_probability: NestedKey


# ---------------------------------------------------------------- what is computed


def imagine(
    world_model: TensorDictModuleBase, state: TensorDictBase, action: Tensor, action_key: NestedKey
) -> TensorDictBase:
    """What the world model writes under ``"next"``, a draw where it is one of several.

    Args:
        world_model: reads the state and the action.
        state: ``[*B]``, left as it is.
        action: ``[*B, A]``.
        action_key: where the world model reads it.
    """
    # LossModule runs everything deterministically: a model that samples must still do so.
    with set_exploration_type(ExplorationType.RANDOM):
        out = world_model(state.clone(False).set(action_key, action))
    return out.get("next", TensorDict(batch_size=state.batch_size))


def ended(next_state: TensorDictBase, keys: TransitionKeys) -> tuple[Tensor, Tensor]:
    """The boolean that masks the target, and the share that it or a probability masks.

    A learned probability masks in place of the boolean, which is then false everywhere.

    Returns:
        Two tensors ``[*B, 1]``, boolean and floating.
    """
    reward = next_state.get(keys.reward)
    probability = next_state.get(keys.termination_probability, None)
    terminated = next_state.get(keys.terminated, None)
    if terminated is None or probability is not None:
        terminated = torch.zeros_like(reward, dtype=torch.bool)
    return terminated, terminated.to(reward.dtype) if probability is None else probability


# ---------------------------------------------------------------- batches


def keys_read(modules: Iterable[TensorDictModuleBase], action_key: NestedKey) -> list[NestedKey]:
    """The keys of the state, the action left out, that the modules read."""
    keys = dict.fromkeys(unravel_key(key) for module in modules for key in module.in_keys)
    keys.pop(unravel_key(action_key), None)
    return list(keys)


def read_states(
    tensordict: TensorDictBase,
    keys: Sequence[NestedKey],
    network_keys: Sequence[NestedKey],
    dtype: torch.dtype,
) -> TensorDictBase:
    """The states alone, with a batch size that the caller's tensordict may not carry.

    Args:
        tensordict: of the caller; left as it is.
        keys: the entries that a state consists of.
        network_keys: those of them that actor and critics read.
        dtype: of the networks.

    Raises:
        ValueError: an entry is missing or of another dtype than the networks.
    """
    state = TensorDict()
    for key in keys:
        reader = "the networks read" if key in network_keys else "the world model reads"
        state.set(key, read_entry(tensordict, key, reader))
    for key in network_keys:
        check_dtype(key, state.get(key), dtype, "the networks")
    # A keyword call brings no batch size: all that the entries share but their last dimension.
    shapes = [state.get(key).shape[:-1] for key in keys]
    depth = min(len(shape) for shape in shapes)  # min(key=) would not compile at any size
    shared = next(shape for shape in shapes if len(shape) == depth)
    while any(shape[: len(shared)] != shared for shape in shapes):
        shared = shared[:-1]
    state.batch_size = tensordict.batch_size or shared
    return state


def read_entry(tensordict: TensorDictBase, key: NestedKey, reader: str) -> Tensor:
    """An entry, or an error that names it, who reads it, and what there is."""
    value = tensordict.get(key, None)
    if value is None:
        raise ValueError(
            f"{reader} {key!r}, which the tensordict does not hold; its keys are "
            f"{sorted(map(str, tensordict.keys(True, True)))}."
        )
    return value


def check_dtype(key: NestedKey, value: Tensor, dtype: torch.dtype, owner: str) -> None:
    """Refuses a floating entry of another dtype than the networks'."""
    if value.is_floating_point() and value.dtype != dtype:
        raise ValueError(
            f"entry {key!r} has dtype {value.dtype}, {owner} {dtype}; convert one of them."
        )


def check_some(state: TensorDictBase) -> None:
    """Refuses a batch of no states, over which there is no mean."""
    if not state.batch_size.numel():
        raise ValueError(
            f"the tensordict holds no states (batch size {list(state.batch_size)}), and the "
            'mean over none is undefined; pass at least one, or reduction="sum".'
        )


def check_weights(weights: Tensor, key: NestedKey, loss: Tensor) -> Tensor:
    """The states' weights in the loss's shape ``[*B]`` and dtype, or an error."""
    if weights.numel() != loss.numel():
        raise ValueError(
            f"{key!r} has shape {tuple(weights.shape)}; one weight for each of the states of batch "
            f"size {list(loss.shape)} is expected."
        )
    return weights.reshape(loss.shape).to(loss)


# ---------------------------------------------------------------- networks


def run_network(
    name: str, network: Callable[[TensorDictBase], Out], tensordict: TensorDictBase
) -> Out:
    """Calls a network; one that cannot take what it is given is named, with the shapes."""
    try:
        return network(tensordict)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shapes = {key: tuple(value.shape) for key, value in tensordict.items(True, True)}
        raise ValueError(f"the {name} cannot take inputs of shape {shapes}: {error}") from error


def check_written(value: Tensor | None, key: NestedKey, module: str, argument: str) -> Tensor:
    """Refuses a module that does not write ``key``."""
    if value is None:
        raise ValueError(
            f"the {module} writes no {key!r}; name the key it writes with set_keys({argument}=...)."
        )
    return value


def check_action(action: Tensor, key: NestedKey, batch_size: torch.Size, bound: Tensor) -> None:
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


def check_value(value: Tensor | None, key: NestedKey, shape: Sequence[int], critics: int) -> None:
    """Refuses a critic's value that is not ``[C, *B, 1]``."""
    value = check_written(value, key, "critic", "state_action_value")
    if value.shape != (*shape, 1):
        raise ValueError(
            f"the critic's {key!r} has shape {tuple(value.shape)} over {critics} critics, expected "
            f"{(*shape, 1)}: end it with a layer of one output."
        )


def check_hook(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """Refuses what a subclass's hook returns in another shape, which would broadcast."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"the loss's {name} returned shape {tuple(value.shape)}, expected {tuple(shape)}."
        )


def check_transition(
    imagined: TensorDictBase,
    state: TensorDictBase,
    keys: TransitionKeys,
    next_keys: Sequence[NestedKey],
    dtype: torch.dtype,
) -> None:
    """Refuses what a world model wrote that is no transition.

    Args:
        imagined: what it wrote under ``"next"``.
        state: where it was, ``[*B]``.
        keys: of reward and termination.
        next_keys: the entries that a next state must have.
        dtype: of the networks.
    """
    if imagined.get(keys.reward, None) is None:
        raise ValueError(
            f"the world model writes no reward under {('next', keys.reward)!r}: append a "
            "reward module, e.g. TensorDictSequential(dynamics, task.reward)."
        )
    for key in next_keys:
        check_next_entry(key, state.get(key), imagined.get(key, None))
    soft = f"; write a probability under {('next', keys.termination_probability)!r}"
    for key, kind, remedy in (
        (keys.reward, dtype, ""),
        (keys.terminated, torch.bool, soft),
        (keys.termination_probability, dtype, ""),
    ):
        value = imagined.get(key, None)
        if value is None:
            continue
        if value.shape != (*state.batch_size, 1):
            raise ValueError(
                f"the world model's {('next', key)!r} has shape {tuple(value.shape)}, expected "
                f"{(*state.batch_size, 1)}."
            )
        if value.dtype != kind:
            raise ValueError(
                f"the world model's {('next', key)!r} has dtype {value.dtype}, expected {kind}"
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


def check_depends_on_action(
    imagine: Callable[[Tensor], TensorDictBase],
    action: Tensor,
    next_keys: Sequence[NestedKey],
    remedy: str,
) -> None:
    """Refuses a world model whose next state carries no gradient to the action.

    Args:
        imagine: the action to the next state.
        action: ``[*B, A]``.
        next_keys: the entries of the next state.
        remedy: what else the user may do, for the message.

    Raises:
        ValueError: the path is cut.
    """
    with torch.enable_grad():
        action = action.detach().requires_grad_()
        next_state = imagine(action)
        parts = [next_state.get(key) for key in next_keys]
        parts = [part.sum() for part in parts if part.requires_grad]
        (gradient,) = (
            torch.autograd.grad(sum(parts), action, allow_unused=True) if parts else (None,)
        )
    if gradient is None:
        raise ValueError(
            f"the world model's next state {[('next', key) for key in next_keys]} "
            "carries no gradient to the action: the loss differentiates through it. Remove "
            f"detach() or no_grad() from the model, sample by reparameterisation (rsample), or "
            f"{remedy}."
        )
