"""Tasks: an environment with its known, differentiable reward and termination."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, flatten_space
from gymnasium.wrappers import FlattenObservation, RescaleAction
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import GymWrapper

from torchrl_mage.envs.checked import CheckedEnv, RealActions
from torchrl_mage.envs.recorded import RecordedEnv
from torchrl_mage.modules.reading import ReadingModule

TransitionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

# Beyond it a bound is no limit but "any number", of which a policy would use the very middle.
LARGEST_BOUND = 1e6


@dataclass(frozen=True)
class Task:
    """A gymnasium environment and what is known of it.

    Args:
        name: gymnasium id.
        reward: module reading ``observation`` ``[*B, D]``, ``action`` ``[*B, A]`` in [-1, 1] and
            ``("next", "observation")``, writing ``("next", "reward")`` ``[*B, 1]``, differentiably.
        termination: likewise, writing the boolean ``("next", "terminated")`` ``[*B, 1]``; ``None``
            where the task never ends. A time limit is no termination.
        wrap: applied to the gymnasium environment; its spaces are those that are checked, its
            observations those that are flattened, and its actions those that are rescaled to
            [-1, 1].
        known: whether reward and termination are what they are said to be; ``False`` of an
            environment of which nothing is known.
        kwargs: passed to :func:`gymnasium.make`: the variant of the environment that is meant.
        pose: puts an environment of :meth:`make_gymnasium`, which was reset, into the state that an
            observation ``[D]`` shows, to draw what a model imagines; ``None`` where that is not
            told. A locomotion task stays at its place on the ground, which is not observed.

    Example:
        >>> task = Task("Pendulum-v1", reward=None)
        >>> task.make_env().rollout(2)["action"].shape
        torch.Size([2, 1])
    """

    name: str
    reward: TensorDictModule | None = None
    termination: TensorDictModule | None = None
    wrap: Callable[[gymnasium.Env], gymnasium.Env] | None = None
    known: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    pose: Callable[[gymnasium.Env, np.ndarray], None] | None = None

    def make_env(
        self,
        *,
        device: torch.device | str = "cpu",
        timeout: float | None = None,
        **kwargs: Any,
    ) -> GymWrapper:
        """The environment: ``observation`` in float32, actions in [-1, 1].

        Observations of several parts become one vector, by :func:`gymnasium.spaces.flatten`.
        Where the environment takes whole numbers, an action is scaled to their box and rounded.

        Args:
            device: where the tensors live.
            timeout: seconds that a step or a reset may take.
            **kwargs: passed to :func:`gymnasium.make`, e.g. ``render_mode="rgb_array"``, over the
                task's own.

        What the environment does wrong later raises
        :class:`~torchrl_mage.envs.checked.EnvironmentFault`.

        Raises:
            ValueError: the actions are not a bounded box, one of its sides has no length or is
                absurdly long, or the observations cannot become one vector.
        """
        env = self.make_gymnasium(**kwargs)
        space = env.action_space
        assert isinstance(space, Box)
        if not (np.all(space.low == -1) and np.all(space.high == 1)):
            env = RescaleAction(env, np.float32(-1), np.float32(1))
        return GymWrapper(RecordedEnv(CheckedEnv(env, self.name, timeout)), device=device)

    def make_gymnasium(self, **kwargs: Any) -> gymnasium.Env:
        """The gymnasium environment behind :meth:`make_env`: one vector each, in raw units.

        Wrapped, its observations of several parts flattened, its actions real numbers in the
        environment's own box. Transitions that are logged in it are
        :func:`~torchrl_mage.envs.read_transitions`' own.

        Args:
            **kwargs: passed to :func:`gymnasium.make`, over the task's own.

        Raises:
            ValueError: as :meth:`make_env` does.

        Example:
            >>> env = Task("Pendulum-v1").make_gymnasium()
            >>> env.observation_space.shape, env.action_space
            ((3,), Box(-2.0, 2.0, (1,), float32))
        """
        env = gymnasium.make(self.name, **{**self.kwargs, **kwargs})
        if self.wrap is not None:
            env = self.wrap(env)
        env = _flattened(self.name, env)
        space = _checked_actions(self.name, env.action_space)
        return env if space.dtype == np.float32 else RealActions(env)


def _flattened(name: str, env: gymnasium.Env) -> gymnasium.Env:
    """Observes one vector."""
    space = env.observation_space
    if isinstance(space, Box) and len(space.shape) == 1:
        return env
    with suppress(NotImplementedError):  # of a space that gymnasium does not know
        if isinstance(flatten_space(space), Box):
            return FlattenObservation(env)
    raise ValueError(
        f"{name} has the observation space {space}, which cannot become one vector. Give the Task "
        "a wrap that makes it one, e.g. gymnasium.wrappers.TransformObservation."
    )


def _checked_actions(name: str, space: gymnasium.Space) -> Box:
    """The action space, if MAGE can scale it to [-1, 1]."""
    if not (isinstance(space, Box) and len(space.shape) == 1 and space.is_bounded("both")):
        raise ValueError(
            f"{name} has the action space {space}; MAGE needs a bounded Box of one "
            "dimension. Give the Task a wrap that makes its actions bounded and continuous."
        )
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    if (low >= high).any():
        raise ValueError(
            f"{name} has the action space {space}, with equal bounds in the dimensions "
            f"{np.flatnonzero(low >= high).tolist()}, where nothing can be chosen. Give the Task a "
            "wrap that leaves them out, e.g. gymnasium.wrappers.TransformAction."
        )
    if max(np.abs(low).max(), np.abs(high).max()) > LARGEST_BOUND:
        raise ValueError(
            f"{name} has the action space {space}; bounds beyond {LARGEST_BOUND:g} are none, and "
            "scaled to them every action would be a huge one. Give the Task a wrap with the bounds "
            "that it needs, e.g. lambda env: gymnasium.wrappers.TransformAction(env, lambda a: a, "
            f"gymnasium.spaces.Box(-1, 1, {space.shape}))."
        )
    return space


TRANSITION: tuple[NestedKey, ...] = ("observation", "action", ("next", "observation"))


def reward_module(
    function: TransitionFunction,
    *,
    in_keys: Sequence[NestedKey] = TRANSITION,
    out_keys: Sequence[NestedKey] = (("next", "reward"),),
) -> TensorDictModule:
    """Reads a transition and writes ``function(s, a, s')``, ``[*B, 1]``, as its reward.

    Args:
        function: of observation ``[*B, D]``, action ``[*B, A]`` and next observation.
        in_keys: their keys.
        out_keys: key of the reward.

    Example:
        >>> from tensordict import TensorDict
        >>> module = reward_module(lambda s, a, n: -a.square(), in_keys=["s", "push", "then"])
        >>> td = TensorDict(s=torch.zeros(3), push=torch.ones(1), then=torch.zeros(3))
        >>> module(td)["next", "reward"]
        tensor([-1.])
    """
    return ReadingModule(function, in_keys, out_keys, name="the reward module")


def termination_module(
    function: Callable[[Tensor], Tensor],
    *,
    in_keys: Sequence[NestedKey] = TRANSITION[2:],
    out_keys: Sequence[NestedKey] = (("next", "terminated"),),
) -> TensorDictModule:
    """Reads a transition and writes the boolean ``function(s')``, ``[*B, 1]``, as terminated.

    Args:
        function: of the next observation ``[*B, D]``.
        in_keys: its key.
        out_keys: key of the termination.

    Example:
        >>> from tensordict import TensorDict
        >>> module = termination_module(lambda n: n[..., :1] > 1, in_keys=["then"])
        >>> module(TensorDict(then=torch.tensor([2.0, 0.0])))["next", "terminated"]
        tensor([True])
    """
    return ReadingModule(function, in_keys, out_keys, name="the termination module")


_TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Makes ``task`` known to :func:`get_task` under its name.

    Raises:
        ValueError: another task has that name.

    Example:
        >>> task = register_task(Task("InvertedPendulum-v5"))
        >>> get_task("InvertedPendulum-v5") is task
        True
    """
    if task.name in _TASKS:
        raise ValueError(f"the task {task.name!r} is registered already.")
    _TASKS[task.name] = task
    return task


def get_task(name: str) -> Task:
    """The task of a gymnasium id.

    Raises:
        ValueError: no task has that name.

    Example:
        >>> get_task("Pendulum-v1").make_env().observation_spec["observation"].shape
        torch.Size([3])
    """
    if name not in _TASKS:
        raise ValueError(
            f"unknown task {name!r}; known are {sorted(_TASKS)}. Use register_task(Task(...)) for "
            "your own."
        )
    return _TASKS[name]


def find_task(name: str) -> Task:
    """The task of a name, or, if none is registered, the environment with nothing known of it.

    Args:
        name: of a registered task, or any gymnasium id; ``"dm_control/cartpole-balance-v0"`` and
            its like need the extra ``dmc``. ``"module:name"`` imports the module first, which may
            register both.

    Raises:
        ValueError: gymnasium does not know the name either, or the module cannot be imported.

    Example:
        >>> task = find_task("InvertedPendulum-v5")
        >>> task.reward is None, task.make_env().observation_spec["observation"].shape
        (True, torch.Size([4]))
    """
    module, _, name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"cannot import {module!r}, which is to register {name!r}: {error}; install it or "
                "put its folder on PYTHONPATH."
            ) from error
    if name in _TASKS:
        return _TASKS[name]
    if name.startswith("dm_control/"):
        try:
            import shimmy  # noqa: F401  registers them
        except ImportError as error:
            raise ValueError(
                f'{name} needs shimmy and dm_control ({error}): pip install -e ".[dmc]".'
            ) from error
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise ValueError(
            f"{name!r} is neither a task ({sorted(_TASKS)}) nor an environment that gymnasium "
            f"knows: {error}"
        ) from error
    return Task(name, known=False)
