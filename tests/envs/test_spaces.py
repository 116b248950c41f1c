"""Spaces: what an environment may take and observe, and what of it is refused by name."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Sequence

from torchrl_mage import Task, register_task
from torchrl_mage.envs import find_task


def test_a_wrap_mends_spaces_and_its_actions_are_rescaled():
    def wrap(env):
        return gymnasium.wrappers.RescaleAction(env, np.float32(-3), np.float32(3))

    env = Task("Pendulum-v1", wrap=wrap).make_env()
    assert (env.action_spec.space.low, env.action_spec.space.high) == (-1, 1)
    assert env.rollout(3)["next", "observation"].shape == (3, 3)


class OddSpaces(gymnasium.Env):
    def __init__(self, action_space, observation_space):
        self.action_space, self.observation_space = action_space, observation_space


VECTOR = Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("action_space", "observation_space", "message"),
    [
        (Discrete(2), VECTOR, r"action space Discrete\(2\); MAGE needs a bounded Box"),
        (Box(-np.inf, 1, (2,)), VECTOR, r"action space Box\(-inf.*bounded Box"),
        (
            Box(np.float32([-1, 2, 0]), np.float32([1, 2, 0])),
            VECTOR,
            r"equal bounds in the dimensions \[1, 2\], where nothing .*leaves them out",
        ),
        (
            Box(-1e10, 1e10, (2,), np.float64),
            VECTOR,
            r"bounds beyond 1e\+06 are none.*TransformAction\(env, .*Box\(-1, 1, \(2,\)\)",
        ),
        (Box(-1, 1, (2, 2)), VECTOR, r"action space Box\(-1.*one dimension"),
        (VECTOR, Sequence(VECTOR), "observation space Sequence.*cannot become one vector"),
    ],
)
def test_odd_spaces_are_named(action_space, observation_space, message):
    gymnasium.register(
        "torchrl_mage_test/Odd-v0", lambda: OddSpaces(action_space, observation_space)
    )
    try:
        with pytest.raises(ValueError, match=message):
            Task("torchrl_mage_test/Odd-v0").make_env(disable_env_checker=True)
    finally:
        gymnasium.registry.pop("torchrl_mage_test/Odd-v0")


class TwoParts(gymnasium.Env):
    """Observes a dictionary."""

    observation_space = Dict({"a": Box(-1, 1, (2,)), "b": Box(-1, 1, (1, 3))})
    action_space = Box(-2, 2, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"a": np.zeros(2, np.float32), "b": np.ones((1, 3), np.float32)}, {}

    def step(self, action):
        return self.reset()[0], float(action[0]), False, False, {}


def test_observations_of_several_parts_become_one_vector():
    gymnasium.register("TwoParts-v0", TwoParts)
    for task in (find_task("TwoParts-v0"), register_task(Task("TwoParts-v0"))):
        assert task.make_env().reset()["observation"].tolist() == [0, 0, 1, 1, 1]
    assert find_task("TwoParts-v0") is task, "the registered one"


class DoubleActions(gymnasium.Env):
    """Takes actions in float64 alone, in a box that needs no rescaling."""

    observation_space = Box(-1, 1, (1,))
    action_space = Box(-1, 1, (1,), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert action.dtype == np.float64
        return action.astype(np.float32), 0.0, False, False, {}


def test_actions_are_float32_whatever_the_environment_takes():
    gymnasium.register("DoubleActions-v0", DoubleActions)
    data = find_task("DoubleActions-v0").make_env().rollout(2)
    assert data["action"].dtype == torch.float32
    torch.testing.assert_close(data["next", "observation"], data["action"])


class Echo(gymnasium.Env):
    """Observes the action that it took, in float64."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action):
        assert action in self.action_space  # of its dtype too
        return action.astype(np.float64), 0.0, False, False, {}


gymnasium.register("torchrl_mage_test/Echo-v0", Echo)


def taken(action_space, actions, wrap=None):
    env = Task("torchrl_mage_test/Echo-v0", wrap=wrap).make_env(action_space=action_space)
    assert env.action_spec.dtype == torch.float32
    assert (env.action_spec.space.low.tolist(), env.action_spec.space.high.tolist()) == (
        [-1, -1],
        [1, 1],
    )
    data = env.rollout(len(actions), actions=torch.tensor(actions))
    return data["next", "observation"].tolist()


@pytest.mark.parametrize(
    ("action_space", "expected"),
    [
        (Box(0, 10, (2,), np.int64), [[0, 10], [5, 8], [6, 4]]),  # 5.05, 8, 5.5, 3.75
        (Box(0, 255, (2,), np.uint8), [[0, 255], [129, 204], [140, 96]]),  # 128.8, 204, 140.3, 95.6
        (Box(-1, 1, (2,), np.int8), [[-1, 1], [0, 1], [0, 0]]),
        (Box(0, 10, (2,), np.float32), [[0, 10], [5.05, 8], [5.5, 3.75]]),
        (Box(0, 10, (2,), np.float64), [[0, 10], [5.05, 8], [5.5, 3.75]]),
        (Box(0, 0.1, (2,), np.float64), [[0, 0.1], [0.0505, 0.08], [0.055, 0.0375]]),
    ],
)
def test_whole_actions_are_scaled_and_rounded(action_space, expected):
    found = taken(action_space, [[-1.0, 1.0], [0.01, 0.6], [0.1, -0.25]])
    whole = action_space.dtype.kind != "f"
    np.testing.assert_allclose(found, expected, rtol=0 if whole else 1e-6)


def test_the_wraps_that_the_refusals_name_mend_them():
    def bounded(env):
        return gymnasium.wrappers.TransformAction(env, lambda a: a, Box(-1, 1, (2,)))

    def fixed(env):
        return gymnasium.wrappers.TransformAction(
            env, lambda a: np.float32([a[0], 2.0]), Box(-1, 1, (1,))
        )

    huge = Box(-1e10, 1e10, (2,), np.float32)
    assert taken(huge, [[-1.0, 0.5]], wrap=bounded) == [[-1.0, 0.5]]
    half = Box(np.float32([-1, 2]), np.float32([1, 2]))
    env = Task("torchrl_mage_test/Echo-v0", wrap=fixed).make_env(
        action_space=half, disable_env_checker=True
    )
    data = env.rollout(1, lambda td: td.set("action", torch.tensor([0.5])))
    assert data["next", "observation"].tolist() == [[0.5, 2.0]]
