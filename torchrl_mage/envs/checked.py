"""A gymnasium environment whose faults are named where they happen."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class EnvironmentFault(RuntimeError):
    """An environment raised, hung, or returned what it must not."""


class CheckedEnv(gymnasium.Wrapper):
    """Speaks float32 to the outside, and names an environment that does not do its part.

    Args:
        env: observations and actions are one vector each.
        name: what the messages call it.
        timeout: seconds that a step or a reset may take; ``None`` for any time. Needs the main
            thread, and a call that comes back to Python now and then.

    Raises:
        EnvironmentFault: the environment raised, took longer than ``timeout``, or returned an
            observation of another shape or no numbers, or a reward that is no number. Values that
            are not finite pass: they are the trainer's to refuse.

    Example:
        >>> env = CheckedEnv(gymnasium.make("Pendulum-v1"), "Pendulum-v1")
        >>> observation, _ = env.reset(seed=0)
        >>> observation.shape, observation.dtype
        ((3,), dtype('float32'))
    """

    def __init__(self, env: gymnasium.Env, name: str, timeout: float | None = None) -> None:
        super().__init__(env)
        self.observation_space = _in_float32(env.observation_space)
        self.action_space = _in_float32(env.action_space)
        self._action_dtype = env.action_space.dtype
        self._name = name
        self._timeout = timeout

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode's first observation."""
        observation, info = self._call("reset", lambda: self.env.reset(**kwargs))
        return self._checked(observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The transition, its observation in float32."""
        out = self._call("step", lambda: self.env.step(action.astype(self._action_dtype)))
        if len(out) != 5:
            self._fault(f"{len(out)} values from its step; gymnasium's interface has 5")
        observation, reward, terminated, truncated, info = out
        if np.size(reward) != 1 or np.asarray(reward).dtype.kind not in "biuf":
            self._fault(f"the reward {reward!r}; it must be one number")
        paid = float(np.asarray(reward).reshape(()))
        return self._checked(observation), paid, bool(terminated), bool(truncated), info

    def _call(self, what: str, function: Callable[[], Any]) -> Any:
        try:
            with time_limit(self._timeout, f"{self._name} has not ended its {what}"):
                return function()
        except EnvironmentFault:
            raise
        except Exception as error:
            raise EnvironmentFault(
                f"{self._name} raised {type(error).__name__} in its {what}: {error}"
            ) from error

    def _checked(self, observation: Any) -> np.ndarray:
        array, shape = np.asarray(observation), self.observation_space.shape
        if array.shape != shape:
            self._fault(f"an observation of shape {array.shape}; its space says {shape}")
        if array.dtype.kind not in "biuf":
            self._fault(f"an observation of dtype {array.dtype}; it must be real numbers")
        return array.astype(np.float32, copy=False)

    def _fault(self, what: str) -> NoReturn:
        raise EnvironmentFault(f"{self._name} returned {what}. Mend it or give the Task a wrap.")


def _in_float32(space: gymnasium.Space) -> Box:
    assert isinstance(space, Box)
    return Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


@contextmanager
def time_limit(seconds: float | None, message: str) -> Iterator[None]:
    """Raises :class:`EnvironmentFault` in the block when it has run for ``seconds``."""
    if seconds is None:
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> NoReturn:
        raise EnvironmentFault(f"{message} within {seconds:g} s.")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
