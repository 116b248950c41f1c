"""What a loss asks of a world model: a next state, checked, and whether the episode ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_mage.objectives.checks import check_column, check_next_entry, run_network


class TransitionKeys(Protocol):
    """The keys of a transition, ``reward`` and what follows it under ``"next"``."""

    action: NestedKey
    reward: NestedKey
    terminated: NestedKey
    termination_probability: NestedKey


def imagine(
    world_model: TensorDictModuleBase,
    state: TensorDictBase,
    action: Tensor,
    keys: TransitionKeys,
    next_keys: Sequence[NestedKey],
) -> TensorDictBase:
    """What the world model writes under ``"next"``.

    Args:
        world_model: reads the state and the action.
        state: ``[*B]``, left as it is.
        action: ``[*B, A]``.
        keys: where it reads the action and writes reward and termination.
        next_keys: the entries that a next state must have.

    Raises:
        ValueError: an entry is missing, or has the wrong shape or dtype, or the world model cannot
            take the state and the action.
    """
    # LossModule runs everything deterministically: a model that samples must still do so.
    with set_exploration_type(ExplorationType.RANDOM):
        inputs = state.clone(False).set(keys.action, action)
        imagined = run_network("world model", world_model, inputs)
    next_state = imagined.get("next", TensorDict(batch_size=state.batch_size))
    if next_state.get(keys.reward, None) is None:
        raise ValueError(
            f"the world model writes no reward under {('next', keys.reward)!r}: append a "
            "reward module, e.g. TensorDictSequential(dynamics, task.reward)."
        )
    for key in next_keys:
        check_next_entry(key, state.get(key), next_state.get(key, None))
    soft = f"; write a probability under {('next', keys.termination_probability)!r}"
    for key, dtype, remedy in (
        (keys.reward, action.dtype, ""),
        (keys.terminated, torch.bool, soft),
        (keys.termination_probability, action.dtype, ""),
    ):
        value = next_state.get(key, None)
        if value is not None:
            check_column(key, value, state.batch_size, dtype, remedy)
    return next_state


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
        action = action.requires_grad_()
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
