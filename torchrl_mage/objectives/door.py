"""The door of an agent loss: states are read and checked here, before anything is computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_mage.objectives.contract import (
    check_action,
    check_depends_on_action,
    check_hook,
    check_some,
    check_transition,
    check_value,
    check_written,
    imagine,
    keys_read,
    read_states,
    run_network,
)
from torchrl_mage.objectives.mended import MendedTD3Loss


class LossWithDoor(MendedTD3Loss):
    """Reads the states of a batch, and checks each kind of batch against the networks once."""

    horizon: int
    differentiated: bool
    _without_gradient: str
    _checked: set[Any]

    @property
    def _state_keys(self) -> list[NestedKey]:
        modules = (self.actor_network, self.qvalue_network, self.world_model)
        return keys_read(modules, self.tensor_keys.action)

    @property
    def _network_keys(self) -> list[NestedKey]:
        return keys_read((self.actor_network, self.qvalue_network), self.tensor_keys.action)

    @property
    def _next_keys(self) -> list[NestedKey]:
        return self._state_keys if self.horizon > 1 else self._network_keys

    def _set_in_keys(self) -> None:
        self._in_keys = self._state_keys

    def _states(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The states of a batch, read, and checked against the networks when they are new."""
        state = read_states(tensordict, self._state_keys, self._network_keys, self.max_action.dtype)
        if self.reduction == "mean":
            check_some(state)
        if not torch.compiler.is_compiling():
            kind = tuple((k, v.shape[state.ndim :], v.dtype) for k, v in state.items(True, True))
            if (self.tensor_keys.action, kind) not in self._checked:
                with self._generators_kept():
                    self.check(state)
                self._checked.add((self.tensor_keys.action, kind))
        return state

    @torch.no_grad()
    def check(self, tensordict: TensorDictBase) -> None:
        """Runs actor, world model and critics once on the states, and names what does not fit.

        Each loss does so by itself at its first eager call with states of a kind, and leaves the
        generators as they were; call it before you compile. Draws what one imagined step draws.

        Raises:
            ValueError: an entry is missing or has the wrong shape or dtype, a network cannot take
                its inputs, or the next state does not depend on the action though the loss
                differentiates through it.
        """
        keys, dtype = self.tensor_keys, self.max_action.dtype
        network_keys = self._network_keys
        with torch.inference_mode(False):
            # Cloned: what inference mode made carries no gradient.
            state = read_states(tensordict, self._state_keys, network_keys, dtype).clone()
            action = run_network(
                "actor", lambda td: self._act(td, self.actor_network_params), state
            )
            action = check_written(action, keys.action, "actor", "action")
            check_action(action, keys.action, state.batch_size, self.max_action)
            inputs = state.clone(False).set(keys.action, action)
            imagined = self._follows(inputs, action)
            check_transition(imagined, state, keys, self._next_keys, dtype)
            if self.differentiated:
                with self._generators_kept():
                    follows = partial(self._follows, inputs)
                    check_depends_on_action(follows, action, network_keys, self._without_gradient)
            chosen = self.choose(
                imagined.select(*self._next_keys), self.actor_network_params, last=True
            )
            check_hook("choose", chosen.get("action"), action.shape)
            if "bonus" in chosen:
                check_hook("choose's bonus", chosen.get("bonus"), (*state.batch_size, 1))
            params = self.qvalue_network_params.data
            each = self._for_each(params, inputs.select(*self.qvalue_network.in_keys))
            out = run_network("critic", lambda td: self._vmap_qvalue_network00(td, params), each)
            value = out.get(keys.state_action_value, None)
            check_value(value, keys.state_action_value, each.batch_size, len(params))

    def _follows(self, inputs: TensorDictBase, action: Tensor) -> TensorDictBase:
        """What the world model makes of it, named if it cannot take it."""
        key = self.tensor_keys.action
        return run_network(
            "world model", lambda td: imagine(self.world_model, td, action, key), inputs
        )

    def _generators_kept(self) -> AbstractContextManager[None]:
        """Leaves the generators as they were."""
        return torch.random.fork_rng([self.max_action.device] if self.max_action.is_cuda else [])
