"""CheckedEnv names what an environment does wrong, and passes on what is right."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.spaces import Box

from torchrl_mage import Task
from torchrl_mage.envs import CheckedEnv, EnvironmentFault
from torchrl_mage.envs.checked import taken_as


class Altered(gymnasium.Wrapper):
    """A pendulum whose step or reset returns something else."""

    def __init__(self, alter=lambda *out: out, alter_reset=lambda *out: out):
        super().__init__(PendulumEnv())
        self.alter, self.alter_reset = alter, alter_reset

    def reset(self, **kwargs):
        return self.alter_reset(*self.env.reset(**kwargs))

    def step(self, action):
        return self.alter(*self.env.step(action))


def step(alter, **kwargs):
    env = CheckedEnv(Altered(alter), "altered", **kwargs)
    env.reset(seed=0)
    return env.step(np.zeros(1, dtype=np.float32))


def hang(*out):
    time.sleep(10)
    return out


def fail(*out):
    raise ZeroDivisionError("no mass")


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda o, r, *rest: (o[:2], r, *rest), r"of shape \(2,\); its space says \(3,\)"),
        (lambda o, r, *rest: (o[None], r, *rest), r"of shape \(1, 3\); its space says \(3,\)"),
        (lambda o, r, *rest: (o.astype(str), r, *rest), "observation of dtype <U.*real numbers"),
        (lambda o, r, *rest: (o + 0j, r, *rest), "observation of dtype complex"),
        (lambda o, r, *rest: (None, r, *rest), r"observation of shape \(\)"),
        (lambda o, r, *rest: (o, [1.0, 2.0], *rest), r"the reward \[1.0, 2.0\]; .* one number"),
        (lambda o, r, *rest: (o, "1", *rest), "the reward '1'; it must be one number"),
        (lambda o, r, *rest: (o, r), "2 values from its step; gymnasium's interface has 5"),
        (lambda *out: None, "a NoneType from its step; gymnasium's interface has 5 values"),
        (lambda o, *rest: o, "a ndarray from its step; gymnasium's interface has 5 values"),
        (lambda *out: (*out[:4], None), "an info of type NoneType from its step; .* last a dict"),
        (lambda o, r, e, t, i: (o, r, np.zeros(2, bool), t, i), r"terminated=array.*true or false"),
        (lambda o, r, e, t, i: (o, r, "False", t, i), "terminated='False'; it must be true or"),
        (lambda o, r, e, t, i: (o, r, e, None, i), "truncated=None; it must be true or false"),
        (lambda o, r, e, t, i: (o, r, 2, t, i), "terminated=2; it must be true or false"),
        (lambda o, r, *rest: (o, [[1.0], [2.0, 3.0]], *rest), "list, which is no array"),
        (lambda o, r, *rest: ([[1.0], [2.0, 3.0]], r, *rest), "list, which is no array"),
        (fail, "altered raised ZeroDivisionError in its step: no mass"),
    ],
)
def test_faults_are_named(alter, message):
    with pytest.raises(EnvironmentFault, match=message):
        step(alter)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda o, i: o, "altered returned a ndarray from its reset; .* 2 values, the last a dict"),
        (lambda o, i: o[:2], "a ndarray from its reset"),  # two numbers are not two values
        (lambda o, i: None, "a NoneType from its reset"),
        (lambda o, i: (o, i, i), "3 values from its reset"),
        (lambda o, i: (o, o), "an info of type ndarray from its reset"),
        (lambda o, i: (o[:2], i), r"observation of shape \(2,\); its space says \(3,\)"),
    ],
)
def test_faults_of_a_reset_are_named(alter, message):
    env = CheckedEnv(Altered(alter_reset=alter), "altered")
    with pytest.raises(EnvironmentFault, match=f"{message}.*Mend it or give the Task a wrap"):
        env.reset(seed=0)


def test_a_hanging_step_is_given_up():
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match="altered has not ended its step within 0.2 s"):
        step(hang, timeout=0.2)
    assert time.monotonic() - start < 5


def test_what_is_right_passes():
    observation, reward, terminated, truncated, _ = step(
        lambda o, r, e, t, i: (o.astype(np.float64), np.array([r]), np.bool_(e), t, i), timeout=5
    )
    assert observation.dtype == np.float32
    assert (type(reward), terminated, truncated) == (float, False, False)
    plain = PendulumEnv()
    plain.reset(seed=0)
    expected = plain.step(np.zeros(1, dtype=np.float32))
    np.testing.assert_array_equal(observation, expected[0])
    assert reward == pytest.approx(expected[1])


def test_unsigned_integers_are_numbers():
    observation, reward, *_ = step(lambda o, r, *rest: (o.astype(np.uint8), np.uint8(7), *rest))
    assert observation.dtype == np.float32
    assert reward == 7.0


def test_values_that_are_not_finite_are_the_trainers_to_refuse():
    observation, reward, *_ = step(lambda o, r, *rest: (o * np.nan, np.inf, *rest))
    assert np.isnan(observation).all()
    assert reward == np.inf


# ---------------------------------------------------------------- copies


class InPlace(gymnasium.Env):
    """Counts its steps in arrays of its own, which it returns."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, reward_shape=()):
        self.count = np.zeros(2, np.float32)
        self.reward = np.zeros(reward_shape, np.float32)

    def info(self):
        return {"count": self.count, "parts": {"first": [self.count, "count"]}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count[:] = 0
        return self.count, self.info()

    def step(self, action):
        action[:] = 7  # nor is the action it was given anyone else's
        self.count += 1
        self.reward[...] = 10 * self.count[0]
        return self.count, self.reward, False, False, self.info()


gymnasium.register("torchrl_mage_test/InPlace-v0", InPlace)


@pytest.mark.parametrize("reward_shape", [(), (1,)])
def test_what_an_environment_updates_in_place_is_copied(reward_shape):
    data = Task("torchrl_mage_test/InPlace-v0").make_env(
        reward_shape=reward_shape, disable_env_checker=True
    )
    data = data.rollout(3, lambda td: td.set("action", torch.full((1,), 0.5)))
    assert data["observation"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert data["next", "observation"].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert data["next", "reward"].tolist() == [[10], [20], [30]]
    assert data["action"].tolist() == [[0.5]] * 3


def test_infos_are_copied():
    env = CheckedEnv(InPlace(), "counts")
    _, first = env.reset()
    *_, second = env.step(np.zeros(1, np.float32))
    env.step(np.zeros(1, np.float32))
    for info, count in ((first, [0, 0]), (second, [1, 1])):
        assert info["count"].tolist() == count
        assert info["parts"]["first"][0].tolist() == count
        assert info["parts"]["first"][1] == "count"


# ---------------------------------------------------------------- whole numbers


@pytest.mark.parametrize(
    ("space", "given", "taken"),
    [
        (Box(0, 10, (2,), np.int64), [9.9, 0.4], [10, 0]),
        (Box(0, 255, (2,), np.uint8), [256.0, -1.0], [255, 0]),
        (Box(-3, 3, (2,), np.int32), [-2.6, 3.4], [-3, 3]),
        (Box(0, 10, (2,), np.float64), [9.9, 11.0], [np.float32(9.9), 10.0]),
        (Box(0, 0.1, (2,), np.float64), [0.1, 0.05], [0.1, np.float32(0.05)]),
        (Box(0, 0.1, (1,), np.float16), [0.1], [np.float16(0.1)]),
        (Box(0, 10, (2,), np.float32), [9.5, 11.0], [9.5, 11.0]),
    ],
)
def test_the_nearest_action_in_the_box_is_taken(space, given, taken):
    action = taken_as(space, np.array(given, np.float32))
    assert action.dtype == space.dtype
    assert action.tolist() == taken


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_reaches_no_environment(dtype, bad):
    class Fragile(InPlace):
        action_space = Box(0, 10, (1,), dtype)

        def step(self, action):
            raise AssertionError("it was reached")

    gymnasium.register("torchrl_mage_test/Fragile-v0", Fragile)
    env = Task("torchrl_mage_test/Fragile-v0").make_env(disable_env_checker=True)
    gymnasium.registry.pop("torchrl_mage_test/Fragile-v0")
    with pytest.raises(FloatingPointError, match=rf"the policy gave the action \[{bad}\]"):
        env.rollout(1, lambda td: td.set("action", torch.full((1,), bad)))


# ---------------------------------------------------------------- what float32 rounds


class Clock(gymnasium.Env):
    """Observes the seconds since 1970 and since the reset."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, start, tick, reward=0.0):
        self.start, self.tick, self.count = start, tick, 0
        self.reward = reward

    def observation(self):
        passed = self.tick * self.count
        return np.array([self.start + passed, passed])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation(), {}

    def step(self, action):
        self.count += 1
        return self.observation(), self.reward + self.count % 5, False, False, {}


gymnasium.register("torchrl_mage_test/Clock-v0", Clock)


def run(env, steps):
    env.reset()
    for _ in range(steps):
        env.step(np.zeros(1, np.float32))


def test_a_feature_that_float32_rounds_to_a_few_levels_is_named():
    """At 1.7e9 it steps by 128, and 99 seconds have passed."""
    message = (
        r"clock: feature 0 of the observation, near 1.7e\+09, has varied by 99, and float32 "
        r"steps by 128 there. It keeps 0.0 decimal digits.*Give the Task a wrap that centres it"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        run(CheckedEnv(Clock(1.7e9, 1.0), "clock"), 300)
    assert len(caught) == 1, "once"


def test_a_reward_that_float32_rounds_to_a_few_levels_is_named_with_a_remedy():
    """Near 4e7 it steps by 4, and the rewards vary by 4."""
    message = (
        r"clock: the reward, near 4e\+07, has varied by 4, and float32 steps by 4 there. It keeps "
        r"0.0 decimal digits.*a wrap that centres it, e.g. gymnasium.wrappers.TransformReward"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        run(CheckedEnv(Clock(0.0, 0.0, 4e7), "clock"), 300)
    assert len(caught) == 1, "once"
    centred = gymnasium.wrappers.TransformReward(Clock(0.0, 0.0, 4e7), lambda reward: reward - 4e7)
    run(CheckedEnv(centred, "clock"), 300)  # a warning is an error here


@pytest.mark.parametrize(
    ("start", "tick"),
    [
        (1e5, 1.0),  # steps by 1/128, of 99
        (1e7, 0.0),  # never moved
        (1e7, 2.0),  # whole numbers below 2^24 are all in float32
        (1.0, 1e-12),  # of no size
    ],
)
def test_what_float32_holds_well_enough_is_not(start, tick):
    run(CheckedEnv(Clock(start, tick), "clock"), 300)  # a warning is an error here


def test_the_wrap_that_the_warning_names_mends_it():
    def wrap(env):
        centred = lambda observation: observation - np.array([1.7e9, 0])  # noqa: E731
        return gymnasium.wrappers.TransformObservation(env, centred, env.observation_space)

    env = Task("torchrl_mage_test/Clock-v0", wrap=wrap).make_env(
        start=1.7e9, tick=1.0, disable_env_checker=True
    )
    assert env.rollout(200)["next", "observation"][:, 0].tolist() == list(range(1, 201))
