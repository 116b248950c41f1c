"""A collector goes on in mid-episode, whatever its environment keeps, or says that it cannot."""

from __future__ import annotations

import warnings
from collections import deque

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import (
    DelayObservation,
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    NormalizeReward,
)
from torchrl.collectors import Collector

from torchrl_mage import Task
from torchrl_mage.envs import ReplayError
from torchrl_mage.trainers import CollectorState

STEPS, SAVED = 40, 25  # the second episode is in its middle


class DelayedActions(gymnasium.Wrapper):
    """An action takes three steps to arrive."""

    def reset(self, **kwargs):
        self.queue = deque([np.zeros(1, np.float32)] * 3)
        return self.env.reset(**kwargs)

    def step(self, action):
        self.queue.append(action)
        return self.env.step(self.queue.popleft())


class Point(gymnasium.Env):
    """A point on a line, with what a test adds."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=4)
        return self.state[:2].copy(), {}

    def noise(self):
        return self.np_random.normal()

    def step(self, action):
        self.state[:1] += 0.1 * self.state[2] + float(action[0])
        self.state[2] += 0.1 * self.noise()
        return self.state[:2].copy(), float(self.state[0]), False, False, {}


class Views(Point):
    """Arrays that are views of each other, updated in place."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = self.state[:2], self.state[2:]
        return self.position, {}

    def step(self, action):
        self.position += 0.1 * self.velocity + action[0]
        self.velocity += 0.1 * self.noise()
        return self.position, float(self.position[0]), False, False, {}


class Odd(Point):
    """Attributes of kinds that no checkpoint of attributes holds, one of 40 MB."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.big_endian = observation.astype(">f4")
        self.long = np.longdouble(observation[0])
        self.map = np.zeros(5_000_000)
        return observation, info

    def step(self, action):
        self.big_endian += 0.1 * action[0]
        self.long += np.longdouble(0.1)
        self.map[0] += 1
        observation, reward, *rest = super().step(action)
        observation += [float(self.big_endian[0]), float(self.long) + self.map[0]]
        return observation, reward, *rest


class OwnGenerator(Point):
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def noise(self):
        return self.generator.normal()


class Noise:
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self):
        return self.generator.normal()


class NoiseObject(Point):
    def __init__(self):
        self.source = Noise()

    def noise(self):
        return self.source()


class Global(Point):
    """Draws from NumPy's global generator, which nobody can see."""

    def noise(self):
        return np.random.normal()


class RedrawnModel(InvertedPendulumEnv):
    """A pole of another mass in each episode, and a list of its own."""

    def reset_model(self):
        self.model.body_mass[-1] = self.np_random.uniform(1, 10)
        self.pushes = []
        return super().reset_model()

    def step(self, action):
        self.pushes.append(float(action[0]))
        observation, *rest = super().step(action + 0.01 * sum(self.pushes[-3:]))
        return observation, rest[0], False, *rest[2:]


SAME = {
    "pendulum": (PendulumEnv, None),
    "frame stack": (PendulumEnv, lambda e: FlattenObservation(FrameStackObservation(e, 3))),
    "delayed observations": (PendulumEnv, lambda e: DelayObservation(e, 2)),
    "delayed actions": (PendulumEnv, DelayedActions),
    "views": (Views, None),
    "odd attributes": (Odd, None),
    "MuJoCo": (RedrawnModel, None),
}
NEW = {
    "normalized observations": (PendulumEnv, NormalizeObservation, "its replay"),
    "normalized rewards": (PendulumEnv, NormalizeReward, "its replay paid"),
    "own generator": (OwnGenerator, None, r"a generator of its own \(OwnGenerator.generator\)"),
    "noise object": (NoiseObject, None, r"a generator of its own \(NoiseObject.source\)"),
    "global generator": (Global, None, "its replay"),
}


@pytest.fixture
def make():
    """A collector of an environment whose episodes have 15 steps."""

    def call(kind, wrap, seed):
        name = f"replay/{kind.__name__}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(name, kind, max_episode_steps=15)
        env = Task(name, wrap=wrap).make_env(disable_env_checker=True)
        env.set_seed(seed)
        return Collector(
            env,
            None,
            frames_per_batch=1,
            total_frames=STEPS,
            auto_register_policy_transforms=False,
        )

    return call


def interrupted(make, kind, wrap):
    """The batches of a run, and a collector that has loaded the state of its middle."""
    torch.manual_seed(0)
    np.random.seed(0)
    collector = make(kind, wrap, seed=0)
    batches = []
    for batch in collector:
        batches.append(batch.clone())
        if len(batches) == SAVED:
            state, generator = CollectorState(collector).state_dict(), torch.get_rng_state()
    other = make(kind, wrap, seed=9)
    position = CollectorState(other)
    return torch.cat(batches), other, position, state, generator


@pytest.mark.parametrize("name", SAME)
def test_it_goes_on_bit_for_bit(make, name):
    whole, other, position, state, generator = interrupted(make, *SAME[name])
    position.load_state_dict(state)
    assert not position.new_episode
    torch.set_rng_state(generator)
    rest = torch.cat([batch.clone() for batch in other])
    assert len(rest) == STEPS - SAVED
    assert (rest == whole[SAVED:]).all()


@pytest.mark.parametrize("name", NEW)
def test_or_begins_a_new_episode_and_says_why(make, name):
    kind, wrap, reason = NEW[name]
    whole, other, position, state, _ = interrupted(make, kind, wrap)
    with pytest.warns(UserWarning, match=f"a new episode begins where the run goes on.*{reason}"):
        position.load_state_dict(state)
    assert position.new_episode
    rest = torch.cat([batch.clone() for batch in other])
    inside = ~rest["next", "done"].squeeze(-1)[:-1]
    following, now = rest["next", "observation"][:-1][inside], rest["observation"][1:][inside]
    assert (following == now).all(), "no transition from one episode to another"
    if name not in ("normalized observations", "own generator", "noise object"):
        starts = [0, *(whole["next", "done"].squeeze(-1).nonzero().flatten() + 1).tolist()]
        firsts = whole["observation"][[s for s in starts if s < SAVED]]
        assert not (rest["observation"][0] == firsts).all(-1).any(), "the generator goes on"


def test_a_replay_that_takes_too_long_is_refused(make):
    collector = make(PendulumEnv, None, seed=0)
    for _ in zip(range(5), collector, strict=False):
        pass
    recorded = collector.env._env
    with pytest.raises(ReplayError, match="its replay took longer than 0 s"):
        recorded.replay(recorded.episode(), seconds=0.0)


def test_an_environment_that_no_task_made_begins_a_new_episode():
    from torchrl.envs import GymEnv

    def plain():
        return Collector(
            GymEnv("Pendulum-v1"),
            None,
            frames_per_batch=1,
            total_frames=5,
            auto_register_policy_transforms=False,
        )

    collector = plain()
    next(iter(collector))
    state = CollectorState(collector).state_dict()
    with pytest.warns(UserWarning, match="a new episode .* was not recorded"):
        CollectorState(plain()).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = Task("Pendulum-v1").make_env()
        recorded.reset()
