"""What a gymnasium environment and its wrappers keep: generators of their own, and plain values."""

from __future__ import annotations

import functools
import hashlib
import random
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics

from torchrl_mage.envs.checked import CheckedEnv

GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.ndarray, torch.Tensor)
# What is no part of an environment's state, and layers that look on.
SKIPPED = (gymnasium.Env, gymnasium.Space, types.ModuleType, type)
ONLOOKERS = (CheckedEnv, OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics)
GYMNASIUMS = {"_np_random", "_np_random_seed", "_cached_spec", "spec"}
DEPTH = 6  # of objects in objects


def own_generators(env: gymnasium.Env) -> list[str]:
    """Attributes that hold a random generator other than gymnasium's ``np_random``.

    Directly, in a container, an object, a bound method or a function; and methods that name a
    global one.

    Example:
        >>> env = gymnasium.make("Pendulum-v1").unwrapped
        >>> env.noise = np.random.default_rng(0).normal
        >>> own_generators(env)
        ['PendulumEnv.noise']
    """
    known = env.unwrapped.np_random

    def own(value: Any) -> bool:
        return isinstance(value, GENERATORS) and value is not known

    found = [*_attributes(env), *_methods(env)]
    return [name for name, leaves in found if any(map(own, leaves))]


def digests(env: gymnasium.Env) -> list[list[str]]:
    """Each attribute with numbers, text or arrays in it, and what tells two values of it apart.

    Example:
        >>> env = gymnasium.make("Pendulum-v1").unwrapped
        >>> _, before = env.reset(seed=0), digests(env)
        >>> _ = env.step(env.action_space.sample())
        >>> [name for name, value in digests(env) if [name, value] not in before]
        ['PendulumEnv.state', 'PendulumEnv.last_u']
    """
    found = []
    for name, leaves in _attributes(env):
        plain = [_bytes(leaf) for leaf in leaves if isinstance(leaf, PLAIN)]
        if plain:
            found.append([name, hashlib.blake2b(b"\0".join(plain), digest_size=16).hexdigest()])
    return found


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, ONLOOKERS):
            yield env
        env = env.env
    yield env


def _attributes(env: gymnasium.Env) -> Iterator[tuple[str, list[Any]]]:
    """The attributes of all layers, and what is in each that was not in one before."""
    seen: set[int] = set()
    for layer in _layers(env):
        for name, value in vars(layer).items():
            if name not in GYMNASIUMS:
                yield f"{type(layer).__name__}.{name}", list(_leaves(value, seen))


def _methods(env: gymnasium.Env) -> Iterator[tuple[str, list[Any]]]:
    """The functions of all layers' classes, and the global generators that each of them names."""
    for layer in _layers(env):
        for kind in type(layer).__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, types.FunctionType):
                    yield f"{kind.__name__}.{name}", list(_global_generators(value))


def _global_generators(function: types.FunctionType) -> Iterator[Any]:
    for name in _names(function.__code__):
        if isinstance(value := function.__globals__.get(name), GENERATORS):
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _leaves(value: Any, seen: set[int], depth: int = 0) -> Iterator[Any]:
    if isinstance(value, (*PLAIN, *GENERATORS)):
        yield value
    elif not isinstance(value, SKIPPED) and depth < DEPTH and id(value) not in seen:
        seen.add(id(value))
        for inner in _inside(value):
            yield from _leaves(inner, seen, depth + 1)


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from (key, value[key])
    elif isinstance(value, (list, tuple, deque)):
        yield from value
    elif isinstance(value, (set, frozenset)):
        yield from sorted(value, key=repr)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        yield value.__self__
    elif isinstance(value, types.FunctionType):
        yield value.__defaults__
        yield from _global_generators(value)
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # an empty cell
                continue
    elif hasattr(value, "__dict__"):
        yield from _inside(vars(value))


def _bytes(leaf: Any) -> bytes:
    if isinstance(leaf, torch.Tensor):
        leaf = leaf.detach().cpu().to(torch.complex128 if leaf.is_complex() else torch.float64)
        leaf = leaf.numpy()
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return repr(leaf).encode()
    array = np.asarray(leaf)
    if array.dtype.kind == "f":  # a long double has bytes that nobody sets
        array = array.astype(np.float64)
    return array.tobytes() if array.dtype.kind in "biufc" else repr(array).encode()
