"""A gymnasium environment that can be brought back into the middle of its episode, by replay."""

from __future__ import annotations

import time
import warnings
from typing import Any

import gymnasium
import numpy as np
import torch

from torchrl_mage.envs.attributes import digests, own_generators


class ReplayError(RuntimeError):
    """An episode cannot be replayed; the message says why."""


class RecordedEnv(gymnasium.Wrapper):
    """Remembers how its episode began and what was done since.

    That is all that an environment's state follows from, whatever it consists of: the state of its
    generator before the last reset, the reset's seed, and the actions since. A replay is verified:
    it must pay the same rewards and end in the same observation. What it leaves in an attribute
    other than it was, such as a count of all episodes, is named in a warning.

    Args:
        env: draws its random numbers from gymnasium's ``np_random``.

    Example:
        >>> env, other = (RecordedEnv(gymnasium.make("Pendulum-v1")) for _ in range(2))
        >>> _ = env.reset(seed=3)
        >>> _ = env.step(np.array([0.5], np.float32))
        >>> other.replay(env.episode())
        >>> action = np.array([1.0], np.float32)
        >>> bool((env.step(action)[0] == other.step(action)[0]).all())
        True
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._begin: dict[str, Any] = {"generator": self._generator(), "seed": None}
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._observation: np.ndarray | None = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begins an episode."""
        self._begin = {"generator": self._generator(), "seed": kwargs.get("seed")}
        self._actions, self._rewards = [], []
        observation, info = self.env.reset(**kwargs)
        self._observation = np.array(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps."""
        self._actions.append(np.array(action))
        observation, reward, *rest = self.env.step(action)
        self._rewards.append(float(reward))
        self._observation = np.array(observation)
        return observation, reward, *rest

    def episode(self) -> dict[str, Any]:
        """The episode so far, as plain tensors, numbers and text."""
        return {
            "name": self._name(),
            "begin": dict(self._begin),
            "generator": self._generator(),
            "actions": torch.from_numpy(np.array(self._actions)),
            "rewards": torch.tensor(self._rewards, dtype=torch.float64),
            "observation": None
            if self._observation is None
            else torch.from_numpy(self._observation.copy()),
            "attributes": digests(self.env),
        }

    def replay(self, episode: dict[str, Any], *, seconds: float = 60.0) -> None:
        """Goes on where :meth:`episode` was read.

        Args:
            episode: of the same environment.
            seconds: how long it may take.

        Raises:
            ReplayError: it cannot be replayed, or ended elsewhere. The environment is left at some
                step, its generator as it was when the episode was read; so it is when the
                environment raises an :class:`~torchrl_mage.envs.EnvironmentFault`.
            ValueError: the episode is another environment's.
        """
        if episode["name"] != self._name():
            raise ValueError(
                f"the state is that of {episode['name']}, the environment is {self._name()}."
            )
        try:
            self._replay(episode, time.monotonic() + seconds, seconds)
        except RuntimeError:  # the environment's own too
            self._set_generator(episode["generator"])
            raise

    def _replay(self, episode: dict[str, Any], deadline: float, seconds: float) -> None:
        if episode["observation"] is None:
            self._set_generator(episode["generator"])
            return
        if own := own_generators(self.env):
            raise ReplayError(f"it draws from a generator of its own ({', '.join(own)})")
        self._set_generator(episode["begin"]["generator"])
        self.reset(seed=episode["begin"]["seed"])
        rewards = episode["rewards"].tolist()
        for count, action in enumerate(episode["actions"].numpy()):
            if time.monotonic() > deadline:
                raise ReplayError(f"its replay took longer than {seconds:g} s")
            self.step(action.copy())
            if self._rewards[-1] != rewards[count]:
                raise ReplayError(
                    f"its replay paid {self._rewards[-1]:g} at step {count + 1} of the episode "
                    f"where {rewards[count]:g} was paid"
                )
        assert self._observation is not None, "a reset has just been recorded"
        if not np.array_equal(self._observation, episode["observation"].numpy(), equal_nan=True):
            raise ReplayError(
                f"its replay of {len(rewards)} steps ended in another observation: it keeps a "
                "state from before the episode, or draws random numbers elsewhere"
            )
        if self._generator() != episode["generator"]:
            raise ReplayError("its replay drew other random numbers")
        now = digests(self.env)
        then = episode.get("attributes", now)  # a checkpoint of an older version has none
        changed = [name for name, value in now if [name, value] not in then]
        gone = {name for name, _ in then}.difference(name for name, _ in now)
        if changed := [*dict.fromkeys(changed), *sorted(gone)]:
            warnings.warn(
                f"the run goes on in its episode, where {self._name()} keeps something from before "
                f"it: {', '.join(changed)} is not what it was. Where what comes depends on that, "
                "it is not bit for bit what it would have been.",
                stacklevel=4,
            )

    def _name(self) -> str:
        spec = self.env.spec
        return spec.id if spec is not None else type(self.unwrapped).__name__

    def _generator(self) -> Any:
        """The state of gymnasium's generator, its integers as text: some have 128 bits."""
        generator = self.unwrapped.np_random
        if isinstance(generator, np.random.RandomState):
            return _encode(generator.get_state(legacy=False))
        if not isinstance(generator, np.random.Generator):
            return None
        return _encode(generator.bit_generator.state)

    def _set_generator(self, state: Any) -> None:
        generator = self.unwrapped.np_random
        if isinstance(generator, np.random.RandomState):
            generator.set_state(_decode(state))
        elif state is not None:
            generator.bit_generator.state = _decode(state)


def _encode(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _encode(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return [str(number) for number in state]
    return str(state) if isinstance(state, int) else state


def _decode(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _decode(value) for key, value in state.items()}
    if isinstance(state, list):
        return np.array(state, np.uint64)
    if isinstance(state, float):
        return state
    return int(state) if state.lstrip("-").isdigit() else state
