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

from torchrl_mage.envs.rounding import RoundingWatch

REAL = "biuf"  # kinds of dtype


class EnvironmentFault(RuntimeError):
    """An environment raised, hung, or returned what it must not."""


class CheckedEnv(gymnasium.Wrapper):
    """Speaks float32 to the outside, and names an environment that does not do its part.

    What it returns is a copy, which an environment that writes into its own arrays leaves alone. A
    whole number is taken for an action where the environment takes no other: the nearest in its
    box. A feature, or a reward, that float32 rounds to a few levels is named in a warning.

    Args:
        env: observations and actions are one vector each.
        name: what the messages call it.
        timeout: seconds that a step or a reset may take; ``None`` for any time. Needs the main
            thread, and a call that comes back to Python now and then.

    Raises:
        FloatingPointError: an action is not finite; the environment does not see it.
        EnvironmentFault: the environment raised, took longer than ``timeout``, or returned other
            than gymnasium's interface has, an observation of another shape or no numbers, a reward
            that is no number, or a termination or truncation that is not true or false. Values
            that are not finite pass: they are the trainer's to refuse.

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
        self._name = name
        self._watch_rounding = RoundingWatch(name)
        self._watch_reward = RoundingWatch(name, "the reward", "gymnasium.wrappers.TransformReward")
        self._timeout = timeout

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode's first observation."""
        out = self._call("reset", lambda: self.env.reset(**kwargs))
        observation, info = self._parts(out, 2, "reset")
        return self._observed(observation), _copied(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The transition, its observation in float32."""
        taken = taken_as(self.env.action_space, action)
        out = self._call("step", lambda: self.env.step(taken))
        observation, reward, terminated, truncated, info = self._parts(out, 5, "step")
        paid = self._number(reward, f"the reward {reward!r}; it must be one number")
        exact = np.array([paid])
        self._watch_reward(exact, _rounded(exact))
        ends = [
            self._flag(value, name)
            for value, name in ((terminated, "terminated"), (truncated, "truncated"))
        ]
        return self._observed(observation), paid, *ends, _copied(info)

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

    def _parts(self, out: Any, count: int, what: str) -> Any:
        """Those of gymnasium's interface, the info last."""
        if not isinstance(out, (tuple, list)):
            found = f"a {type(out).__name__}"
        elif len(out) != count:
            found = f"{len(out)} values"
        elif not isinstance(out[-1], dict):
            found = f"an info of type {type(out[-1]).__name__}"
        else:
            return out
        return self._fault(
            f"{found} from its {what}; gymnasium's interface has {count} values, the last a dict"
        )

    def _observed(self, observation: Any) -> np.ndarray:
        array, shape = self._array(observation), self.observation_space.shape
        if array.shape != shape:
            self._fault(f"an observation of shape {array.shape}; its space says {shape}")
        if array.dtype.kind not in REAL:
            self._fault(f"an observation of dtype {array.dtype}; it must be real numbers")
        rounded = _rounded(array)
        self._watch_rounding(array, rounded)
        return rounded

    def _number(self, value: Any, what: str) -> float:
        array = self._array(value)
        if array.size != 1 or array.dtype.kind not in REAL:
            self._fault(what)
        return float(array.reshape(()))

    def _flag(self, value: Any, name: str) -> bool:
        what = f"{name}={value!r}; it must be true or false"
        number = self._number(value, what)
        return bool(number) if number in (0, 1) else self._fault(what)

    def _array(self, value: Any) -> np.ndarray:
        try:
            return np.asarray(value)
        except Exception as error:  # whatever its own conversion raises
            return self._fault(f"{type(value).__name__}, which is no array ({error})")

    def _fault(self, what: str) -> NoReturn:
        raise EnvironmentFault(f"{self._name} returned {what}. Mend it or give the Task a wrap.")


class RealActions(gymnasium.ActionWrapper):
    """Takes float32 where the environment takes other numbers, such as whole ones.

    Example:
        >>> from gymnasium.wrappers import TransformAction
        >>> switch = TransformAction(
        ...     gymnasium.make("Pendulum-v1"), lambda a: a - 1.0, Box(0, 2, (1,), np.int64)
        ... )
        >>> env = RealActions(switch)
        >>> env.action_space, env.action(np.array([1.7]))
        (Box(0.0, 2.0, (1,), float32), array([2]))
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.action_space = _in_float32(env.action_space)

    def action(self, action: np.ndarray) -> np.ndarray:
        """The action that the environment takes."""
        return taken_as(self.env.action_space, action)


def taken_as(space: gymnasium.Space, action: np.ndarray) -> np.ndarray:
    """A copy of a float32 action in the box's dtype; if that is another one, the nearest in it.

    Raises:
        FloatingPointError: the action is not finite.
    """
    assert isinstance(space, Box)
    if not np.isfinite(action).all():
        raise FloatingPointError(
            f"the policy gave the action {action.tolist()}, which no environment can take. Nothing "
            "was done with it. A policy gives such actions when it diverged."
        )
    if space.dtype == np.float32:
        return action.astype(np.float32)
    # A cast alone would cut 9.9 down to 9, wrap 256 to 0, and leave float64's 0.1 for float32's.
    whole = space.dtype.kind != "f"
    exact = np.rint(action) if whole else action.astype(np.float64)
    return np.clip(exact, space.low, space.high).astype(space.dtype)


def _rounded(array: np.ndarray) -> np.ndarray:
    """A copy in float32, which an environment that writes into its own array leaves alone."""
    with np.errstate(over="ignore"):  # to infinity, which the trainer refuses by name
        return array.astype(np.float32)


def _copied(info: Any) -> Any:
    """The info, its arrays copied: the environment may write into them."""
    if isinstance(info, dict):
        return {key: _copied(value) for key, value in info.items()}
    if type(info) in (list, tuple):
        return type(info)(map(_copied, info))
    return info.copy() if isinstance(info, np.ndarray) else info


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
