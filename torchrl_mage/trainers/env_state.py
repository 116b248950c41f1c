"""The state of a gymnasium environment within an episode, as plain tensors and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import EnvSpec
from torchrl.envs import GymWrapper

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


class EnvState:
    """Reads and restores all that decides how an environment goes on.

    That is, of the environment and each wrapper around it: the numbers and arrays it holds (a
    classic-control state, the time limit's counter), the random generator, and MuJoCo's integration
    state. What an environment keeps elsewhere, in lists or objects of its own, is not read: see
    :attr:`unread`.

    Args:
        env: a TorchRL wrapper of one gymnasium environment.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> env = GymEnv("Pendulum-v1")
        >>> state = env.reset()
        >>> saved = EnvState(env).state_dict()
        >>> first = env.rand_step(state.clone())
        >>> EnvState(env).load_state_dict(saved)
        >>> second = env.step(state.clone().set("action", first["action"]))
        >>> bool((first["next", "observation"] == second["next", "observation"]).all())
        True
    """

    def __init__(self, env: GymWrapper) -> None:
        self._env = env

    def _layers(self) -> Iterator[gymnasium.Env]:
        layer = self._env._env
        while isinstance(layer, gymnasium.Wrapper):
            yield layer
            layer = layer.env
        yield layer

    @property
    def unread(self) -> list[str]:
        """The environment's attributes that may hold a state which is not read, MuJoCo's aside."""
        bare = self._env._env.unwrapped
        if isinstance(bare, MujocoEnv):
            return []
        return [
            key for key, value in vars(bare).items() if not _is_plain(value) and not _fixed(value)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings, nested by the layer's class."""
        layers = []
        for layer in self._layers():
            values = {k: _encode(v) for k, v in vars(layer).items() if _is_plain(v)}
            layers.append({"class": type(layer).__name__, "values": values})
        bare = self._env._env.unwrapped
        state: dict[str, Any] = {"layers": layers}
        if isinstance(bare.np_random, np.random.Generator):
            state["random"] = _encode_random(bare.np_random.bit_generator.state)
        if isinstance(bare, MujocoEnv):
            physics = np.empty(mujoco.mj_stateSize(bare.model, INTEGRATION))
            mujoco.mj_getState(bare.model, bare.data, physics, INTEGRATION)
            state["physics"] = torch.from_numpy(physics)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` read.

        Raises:
            ValueError: the state is that of another environment.
        """
        layers = list(self._layers())
        names, saved = [type(x).__name__ for x in layers], [x["class"] for x in state["layers"]]
        if names != saved:
            raise ValueError(f"the state is that of {saved}, the environment is {names}.")
        for layer, entry in zip(layers, state["layers"], strict=True):
            for key, value in entry["values"].items():
                setattr(layer, key, _decode(value))
        bare = self._env._env.unwrapped
        if "random" in state:
            bare.np_random.bit_generator.state = _decode_random(state["random"])
        if isinstance(bare, MujocoEnv):
            physics = state["physics"].numpy()
            mujoco.mj_setState(bare.model, bare.data, physics, INTEGRATION)
            # Positions of bodies follow from the state; the forward pass that computes them moves
            # the solver's warm start, hence the second time.
            mujoco.mj_forward(bare.model, bare.data)
            mujoco.mj_setState(bare.model, bare.data, physics, INTEGRATION)


def _is_plain(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "bif"
    return value is None or isinstance(value, (bool, int, float, str, np.number))


def _fixed(value: Any) -> bool:
    """What no step changes, or is read otherwise."""
    kinds = (gymnasium.Space, EnvSpec, np.random.Generator, type, ModuleType)
    return isinstance(value, kinds) or callable(value)


def _encode(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.number)):
        return {"array": torch.from_numpy(np.array(value)), "scalar": isinstance(value, np.number)}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        array = value["array"].numpy().copy()
        return array[()] if value["scalar"] else array
    return value


def _encode_random(state: Any) -> Any:
    """The generator's integers have 128 bits: as text."""
    if isinstance(state, dict):
        return {key: _encode_random(value) for key, value in state.items()}
    return str(state) if isinstance(state, int) else state


def _decode_random(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _decode_random(value) for key, value in state.items()}
    return int(state) if state.lstrip("-").isdigit() else state
