"""A family of gymnasium environments as their users write them, and what each of them did.

A :class:`Kind` says what a :class:`Member` is like; :func:`kinds` draws them. :class:`Log` is its
outermost layer: it keeps copies of all that the environment was given and gave.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.spaces import Box
from hypothesis import strategies as st

from torchrl_mage import Task

ID = "family/Member-v0"
THRESHOLD = 0.8  # of the first feature, where an episode ends early


@dataclass(frozen=True)
class Kind:
    """What an environment is like.

    Args:
        shape: of the observation.
        dtype: of the observation.
        hands_out: what the observation is: an array of its own, or one that is changed later.
        offset: of the observation.
        bounds: of each action.
        action_dtype: of the action.
        changes_action: whether the action it was given is written into.
        draws: where its random numbers come from.
        noisy: what of it is random: the ``"reset"``, each ``"step"``, or ``"both"``.
        length: of an episode.
        varying: whether an episode may be shorter, by the generator.
        early: whether it ends too where the state is far off.
        ends: by which flag, at its length.
        flag: the flags' type.
        reward: the reward's type.
        scale: the reward's size.
        info: what beside.
        remembers: what it keeps from one episode to the next.
        layers: the wrappers, from the innermost.
    """

    shape: tuple[int, ...] = (2,)
    dtype: str = "float32"
    hands_out: str = "copy"
    offset: float = 0.0
    bounds: tuple[tuple[float, float], ...] = ((-1.0, 1.0),)
    action_dtype: str = "float32"
    changes_action: bool = False
    draws: str = "np_random"
    noisy: str = "reset"
    length: int = 5
    varying: bool = False
    early: bool = False
    ends: str = "truncated"
    flag: str = "bool"
    reward: str = "float"
    scale: float = 1.0
    info: str = "none"
    remembers: str = "nothing"
    layers: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The member as a task, logged."""
        limit = {"max_episode_steps": self.length} if self.ends == "time limit" else {}
        return Task(ID, wrap=self._wrapped, known=False, kwargs={"kind": self, **limit})

    @property
    def replayable(self) -> bool:
        """Whether what it does follows from gymnasium's generator and its episode's actions."""
        lasting = {"NormalizeObservation", "NormalizeReward"}
        return (
            self.draws in ("np_random", "np_random, a RandomState", "of the episode")
            and (self.remembers == "nothing" or "idly" in self.remembers)
            and not lasting & set(self.layers)
        )

    def _wrapped(self, env: gymnasium.Env) -> Log:
        for layer in self.layers:
            env = LAYERS[layer](env)
        shape = env.observation_space.shape
        return Log(env if len(shape or ()) == 1 else wrappers.FlattenObservation(env))


class Transition(NamedTuple):
    """What an environment was given, and gave."""

    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool


class Record:
    """Of what passed: no attributes, in which a replay would look for an environment's state."""

    __slots__ = ("last", "transitions")

    def __init__(self) -> None:
        self.last = np.zeros(0)
        self.transitions: list[Transition] = []


class Log(gymnasium.Wrapper):
    """Copies what passes, before anybody can change it."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.record = Record()

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.record.last = np.array(observation, copy=True)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        taken = np.array(action, copy=True)
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, after = self.record.last, np.array(observation, copy=True)
        paid = float(np.array(reward, copy=True).reshape(()))
        self.record.transitions.append(
            Transition(before, taken, after, paid, bool(terminated), bool(truncated))
        )
        self.record.last = after
        return observation, reward, terminated, truncated, info


class Member(gymnasium.Env):
    """A damped point that actions push, in all the ways of its kind."""

    def __init__(self, kind: Kind, render_mode: str | None = None) -> None:
        self.kind, self.render_mode = kind, render_mode
        low, high = np.array(kind.bounds).T
        whole = np.dtype(kind.dtype).kind in "iu"
        top = np.iinfo(kind.dtype).max if whole else np.inf
        bottom = np.iinfo(kind.dtype).min if whole else -np.inf
        self.observation_space = Box(bottom, top, kind.shape, np.dtype(kind.dtype))
        self.action_space = Box(
            low.astype(kind.action_dtype), high.astype(kind.action_dtype), dtype=kind.action_dtype
        )
        size = int(np.prod(kind.shape))
        self.everything = np.zeros(2 * size)
        self.state = self.everything[:size]  # a view, changed in place
        self.seen = np.zeros((size, 2), np.dtype(kind.dtype))
        self.paid, self.measured = np.zeros(1), np.zeros(3)
        self.episodes = 0
        self.best = 0.0
        GENERATORS[kind.draws](self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        kind = self.kind
        if kind.draws != "np_random, a RandomState":
            super().reset(seed=seed)
        elif seed is not None:
            self.np_random = np.random.RandomState(seed)
        if kind.draws == "of the episode":
            own = SimpleNamespace(draw=self.np_random.normal)
            self.draw = lambda size: own.draw(size=size)
        size = self.state.size
        noise = self.draw(size) if kind.noisy != "step" else self.np_random.normal(size=size)
        self.everything[:] = 0.0
        if kind.remembers != "its last reward, idly":
            self.paid[:] = 0.0
        self.state[:] = 0.5 * noise
        self.episodes += "episodes" in kind.remembers
        if kind.remembers == "its episodes":
            self.state[0] += 0.1 * self.episodes
        self.left = kind.length
        if kind.varying:
            self.left = 1 + int(abs(self.np_random.normal()) * kind.length) % kind.length
        if kind.remembers == "its episodes, which grow":
            self.left += self.episodes % 3
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        kind = self.kind
        low, high = np.array(kind.bounds).T
        assert action.dtype == self.action_space.dtype
        assert self.action_space.contains(action), (action, self.action_space)
        push = 2 * (action.astype(np.float64) - low) / (high - low) - 1
        if kind.changes_action:
            action[:] = low
        self.state *= 0.8
        self.state += 0.3 * push.mean()
        if kind.noisy != "reset":
            self.state += 0.1 * self.draw(self.state.size)
        self.left -= 1
        over = self.left <= 0 and kind.ends != "time limit"
        terminated = over and kind.ends in ("terminated", "both")
        truncated = over and kind.ends in ("truncated", "both")
        if kind.early:
            terminated |= bool(abs(self.state[0]) > THRESHOLD)
        self.paid[:] = kind.scale * (1 - np.square(self.state).sum() - 0.1 * np.square(push).sum())
        if kind.remembers == "a best":
            self.best = max(self.best, float(np.abs(self.state).max()))
            self.paid += kind.scale * self.best
        flags = (FLAGS[kind.flag](flag) for flag in (terminated, truncated))
        return self._observation(), REWARDS[kind.reward](self.paid), *flags, self._info()

    def _observation(self) -> Any:
        kind = self.kind
        exact = kind.offset + self.state
        if np.dtype(kind.dtype).kind in "iu":
            limits = np.iinfo(kind.dtype)
            exact = np.clip(np.rint(100 + 40 * exact), limits.min, limits.max)
        self.seen[:, 0] = exact
        return HANDS_OUT[kind.hands_out](self.seen, kind.shape)

    def _info(self) -> dict[str, Any]:
        self.measured[:] = self.left
        return dict(INFOS[self.kind.info](self))


def _read_only(seen: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    view = seen[:, 0].reshape(shape)
    view.flags.writeable = False
    return view


HANDS_OUT: dict[str, Callable[[np.ndarray, tuple[int, ...]], Any]] = {
    "copy": lambda seen, shape: seen[:, 0].copy().reshape(shape),
    "a view": lambda seen, shape: np.lib.stride_tricks.as_strided(
        seen, shape, (seen.strides[0] * shape[-1], seen.strides[0])[-len(shape) :]
    ),
    "a read-only view": lambda seen, shape: _read_only(seen[:, :1], shape),
    "a list": lambda seen, shape: seen[:, 0].reshape(shape).tolist(),
}
FLAGS: dict[str, Callable[[bool], Any]] = {
    "bool": bool,
    "numpy": np.bool_,
    "integer": int,
    "array": np.asarray,
    "array of one": lambda flag: np.array([flag]),
}
REWARDS: dict[str, Callable[[np.ndarray], Any]] = {
    "float": lambda paid: float(paid[0]),
    "float32": lambda paid: np.float32(paid[0]),
    "float64": lambda paid: paid[0],
    "integer": lambda paid: int(paid[0]),
    "array": lambda paid: np.array(paid[0]),
    "its own array": lambda paid: paid,
    "a view": lambda paid: paid.reshape(()),
}
INFOS: dict[str, Callable[[Member], dict[str, Any]]] = {
    "none": lambda env: {},
    "arrays": lambda env: {"state": env.state, "measured": env.measured[1:]},
    "nested": lambda env: {"all": {"here": [env.measured, None], "name": "x"}, "left": env.left},
}


def _module_level(env: Member) -> None:
    env.draw = lambda size: GENERATOR.normal(size=size)


def _attribute(make: Callable[[], Any]) -> Callable[[Member], None]:
    def give(env: Member) -> None:
        env.generator = make()
        env.draw = lambda size: env.generator.normal(size=size)

    return give


def _python(env: Member) -> None:
    env.generator = random.Random()
    env.draw = lambda size: np.array([env.generator.gauss(0, 1) for _ in range(size)])


def _inside(env: Member) -> None:
    env.wind = SimpleNamespace(source=SimpleNamespace(generator=np.random.default_rng()))
    env.draw = lambda size: env.wind.source.generator.normal(size=size)


def _in_a_list(env: Member) -> None:
    env.generators = [np.random.default_rng()]
    env.draw = lambda size: env.generators[0].normal(size=size)


def _method(env: Member) -> None:
    env.draw = np.random.default_rng().normal


def _closure(env: Member) -> None:
    generator = np.random.default_rng()
    env.draw = lambda size: generator.normal(size=size)


def _pytorch(env: Member) -> None:
    env.generator = torch.Generator()
    env.draw = lambda size: torch.randn(size, generator=env.generator).double().numpy()


def _draws(function: Callable[[int], np.ndarray]) -> Callable[[Member], None]:
    def give(env: Member) -> None:
        env.draw = function

    return give


GENERATOR = np.random.default_rng()
GENERATORS: dict[str, Callable[[Member], None]] = {
    "np_random": lambda env: setattr(env, "draw", lambda size: env.np_random.normal(size=size)),
    "np_random, a RandomState": lambda env: setattr(
        env, "draw", lambda size: env.np_random.normal(size=size)
    ),
    "of the episode": lambda env: None,
    "its own": _attribute(np.random.default_rng),
    "its own, seeded": _attribute(lambda: np.random.default_rng(7)),
    "RandomState": _attribute(np.random.RandomState),
    "random.Random": _python,
    "torch.Generator": _pytorch,
    "in an object": _inside,
    "in a list": _in_a_list,
    "a bound method": _method,
    "a closure": _closure,
    "a module": _module_level,
    "NumPy's": _draws(lambda size: np.random.normal(size=size)),
    "Python's": _draws(lambda size: np.array([random.gauss(0, 1) for _ in range(size)])),
    "PyTorch's": _draws(lambda size: torch.randn(size).numpy().astype(np.float64)),
}


class DelayedAction(gymnasium.Wrapper):
    """Acts a step late."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        out = self.env.reset(**kwargs)
        space = self.action_space
        self.queue = deque([(space.low + (space.high - space.low) // 2).astype(space.dtype)])
        return out

    def step(self, action: Any) -> Any:
        self.queue.append(action)
        return self.env.step(self.queue.popleft())


class Normalised(gymnasium.ObservationWrapper):
    """To float64, which all of the wrappers that follow take."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = Box(-np.inf, np.inf, env.observation_space.shape, np.float64)

    def observation(self, observation: Any) -> np.ndarray:
        return np.asarray(observation, np.float64)


LAYERS: dict[str, Callable[[gymnasium.Env], gymnasium.Env]] = {
    "FrameStack": lambda env: wrappers.FlattenObservation(
        wrappers.FrameStackObservation(wrappers.FlattenObservation(Normalised(env)), 2)
    ),
    "DelayObservation": lambda env: wrappers.DelayObservation(Normalised(env), 2),
    "DelayedAction": DelayedAction,
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.3),
    "NormalizeObservation": lambda env: wrappers.NormalizeObservation(Normalised(env)),
    "NormalizeReward": lambda env: wrappers.NormalizeReward(
        wrappers.TransformReward(env, lambda paid: float(np.reshape(paid, ())))  # all it takes
    ),
    "RecordEpisodeStatistics": lambda env: wrappers.RecordEpisodeStatistics(env),
    "Autoreset": lambda env: wrappers.Autoreset(env),
}

gymnasium.register(ID, Member, disable_env_checker=True)


def _bounds(dtype: str) -> st.SearchStrategy[tuple[tuple[float, float], ...]]:
    if np.dtype(dtype).kind in "iu":
        pairs = [(0, 1), (0, 2), (1, 10), (0, 255)]
    else:
        pairs = [(-1.0, 1.0), (-2.0, 2.0), (0.0, 1.0), (-0.5, 3.0), (-1e5, 1e5), (0.0, 1e-3)]
    return st.lists(st.sampled_from(pairs), min_size=1, max_size=3).map(tuple)


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    """Environments of all kinds; most differ from a plain one in several ways."""

    def one(*choices: Any) -> Any:
        return draw(st.sampled_from(choices))

    dtype = one("float32", "float64", "float16", ">f4", "longdouble", "int64", "uint8")
    action_dtype = one("float32", "float64", "float16", "int64", "uint8")
    if action_dtype == "float16":
        bounds = draw(_bounds("float16").filter(lambda pairs: max(map(max, pairs)) < 6e4))
    else:
        bounds = draw(_bounds(action_dtype))
    offset = one(0.0, 0.0, 0.0, 10.0, 1e3) if np.dtype(dtype).kind == "f" else 0.0
    return Kind(
        shape=one((1,), (2,), (3,), (2, 2), (1, 3)),
        dtype=dtype,
        hands_out=one(*HANDS_OUT),
        offset=offset,
        bounds=bounds,
        action_dtype=action_dtype,
        changes_action=draw(st.booleans()),
        draws=one(*["np_random"] * 8, *GENERATORS),
        noisy=one("reset", "step", "both"),
        length=one(1, 2, 3, 5, 8),
        varying=draw(st.booleans()),
        early=draw(st.booleans()),
        ends=one("terminated", "truncated", "both", "time limit"),
        flag=one(*FLAGS),
        reward=one(*REWARDS),
        scale=one(1.0, 1.0, 1.0, 0.0, 1e-8, 300.0, 1e5),
        info=one(*INFOS),
        remembers=one(
            *["nothing"] * 8,
            "its episodes",
            "its episodes, which grow",
            "its episodes, idly",
            "its last reward, idly",
            "a best",
        ),
        layers=tuple(
            draw(st.lists(st.sampled_from(list(LAYERS)), max_size=2, unique=True))
            if draw(st.booleans())
            else ()
        ),
    )
