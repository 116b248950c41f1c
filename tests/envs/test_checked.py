"""CheckedEnv names what an environment does wrong, and passes on what is right."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv

from torchrl_mage.envs import CheckedEnv, EnvironmentFault


class Altered(gymnasium.Wrapper):
    """A pendulum whose step returns something else."""

    def __init__(self, alter):
        super().__init__(PendulumEnv())
        self.alter = alter

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
        (fail, "altered raised ZeroDivisionError in its step: no mass"),
    ],
)
def test_faults_are_named(alter, message):
    with pytest.raises(EnvironmentFault, match=message):
        step(alter)


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
