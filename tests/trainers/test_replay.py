"""A collector that is resumed in mid-episode goes on in it, or says why a new one begins."""

from __future__ import annotations

import contextlib
import copy
import io
from collections import deque

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import (
    DelayObservation,
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    NormalizeReward,
)
from tensordict.nn import TensorDictModule

from torchrl_mage import Task
from torchrl_mage.envs import RecordedEnv
from torchrl_mage.trainers import CollectorState, exploring, exploring_collector

LENGTH, SAVED, TOTAL = 12, 17, 40  # of an episode; five steps into the second one; of the run


class DelayedAction(gymnasium.Wrapper):
    """Acts two steps late."""

    def reset(self, **kwargs):
        self.queue = deque([np.zeros(1, np.float32)] * 2)
        return self.env.reset(**kwargs)

    def step(self, action):
        self.queue.append(action)
        return self.env.step(self.queue.popleft())


class Noise:
    """What is drawn from a generator, in an object that does not say so."""

    def __init__(self, generator):
        self.generator = generator

    def __call__(self):
        return self.generator.normal()


class Gusts(gymnasium.ActionWrapper):
    """Wind, from whatever draws it."""

    def __init__(self, env, noise):
        super().__init__(env)
        self.noise = noise

    def action(self, action):
        draw = self.noise if callable(self.noise) else self.noise.normal
        return np.float32(action + 0.1 * draw())


class GustsOfTheEpisode(Gusts):
    """From a noise object that is made at each reset, as it should be, of the one generator."""

    def __init__(self, env):
        super().__init__(env, None)

    def reset(self, **kwargs):
        out = self.env.reset(**kwargs)
        self.noise = Noise(self.np_random)
        return out


class OtherGenerator(PendulumEnv):
    """Draws by another algorithm, whose state consists of arrays."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.np_random = np.random.Generator(np.random.Philox(seed))
        return super().reset(options=options)

    def step(self, action):
        return super().step(action + 0.1 * self.np_random.normal(size=1))


class OldGenerator(OtherGenerator):
    """NumPy's old one, as dm_control's environments have it in gymnasium."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.np_random = np.random.RandomState(seed)
        return PendulumEnv.reset(self, options=options)


class Views(gymnasium.Env):
    """Position and velocity are views of one array, and change in place."""

    observation_space = Box(-np.inf, np.inf, (4,), np.float64)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self):
        self.state = np.zeros(4)
        self.position, self.velocity = self.state[:2], self.state[2:]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state[:] = self.np_random.normal(size=4)
        return self.state.copy(), {}

    def step(self, action):
        self.velocity += 0.1 * action
        self.position += 0.1 * self.velocity
        return self.state.copy(), -np.square(self.position).sum(), False, False, {}


class Attributes(gymnasium.Env):
    """Numbers of another byte order, of 80 bits, and 40 MB of them."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.swapped = self.np_random.normal(size=1).astype(">f4")
        self.long = np.longdouble(self.np_random.normal()) / 3
        self.large = np.full(5_000_000, self.np_random.normal())
        assert self.large.nbytes == 40_000_000
        return self.observation(), {}

    def observation(self):
        return np.array([self.swapped[0], self.long, self.large[-1]], np.float64)

    def step(self, action):
        self.swapped += action
        self.long = self.long * np.longdouble("0.9") + action[0] / np.longdouble(3)
        self.large[-1:] += action * self.swapped
        return self.observation(), float(self.long), False, False, {}


class OtherMasses(SwimmerEnv):
    """Another body each episode: parameters of the model, which MuJoCo does not reset."""

    def reset_model(self):
        self.model.body_mass[1:] = self.np_random.uniform(20, 50, size=3)
        return super().reset_model()


class Tired(SwimmerEnv):
    """Pays less for what was done before, of which it keeps a list."""

    def __init__(self, **kwargs):
        self.past = []
        super().__init__(**kwargs)

    def reset_model(self):
        self.past = []
        return super().reset_model()

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.past.append(float(np.abs(action).sum()))
        return observation, reward - sum(self.past), *rest


@pytest.fixture
def task(request):
    """Pendulum in a wrapper, or an environment that gymnasium knows for the length of a test."""
    if isinstance(request.param, type) and not issubclass(request.param, gymnasium.Wrapper):
        gymnasium.register("test/Env-v0", request.param)
        yield Task("test/Env-v0")
        gymnasium.registry.pop("test/Env-v0")
    else:
        yield Task("Pendulum-v1", wrap=request.param)


def collecting(task, seed):
    env = task.make_env(max_episode_steps=LENGTH, disable_env_checker=True)
    size = env.action_spec.shape[-1]
    policy = TensorDictModule(lambda s: s[..., :size].sin(), ["observation"], ["action"])
    policy = exploring(policy, env, noise=0.1)
    counts = {"random_steps": 5, "total_steps": TOTAL, "greedy_every": 2}
    return exploring_collector(env, policy, **counts, seed=seed)


def innermost(collector):
    return collector.env._env.unwrapped


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def uninterrupted(task):
    """All batches; the state after :data:`SAVED` of them, torch's generator, the environment's."""
    collector = collecting(task, seed=0)
    batches = []
    for batch in collector:
        batches.append(batch.clone())
        if len(batches) == SAVED:
            state = through_a_file(CollectorState(collector).state_dict())
            generators = torch.get_rng_state(), copy.deepcopy(innermost(collector).np_random)
    collector.shutdown()
    return torch.cat(batches), state, *generators


def rest_of(collector, generator):
    torch.set_rng_state(generator)
    rest = torch.cat([batch.clone() for batch in collector])
    collector.shutdown()
    return rest


# ---------------------------------------------------------------- bit for bit


def stacked(env):
    return FlattenObservation(FrameStackObservation(env, 3))


def delayed(env):
    return DelayObservation(env, 2)


@pytest.mark.parametrize(
    "task",
    [
        stacked,
        delayed,
        DelayedAction,
        GustsOfTheEpisode,
        OtherGenerator,
        OldGenerator,
        Views,
        Attributes,
        OtherMasses,
        Tired,
    ],
    ids=lambda wrap: wrap.__name__,
    indirect=True,
)
def test_it_goes_on_bit_for_bit(task):
    expected, state, generator, _ = uninterrupted(task)
    done = expected["next", "done"].flatten().nonzero().flatten().tolist()
    assert done == [11, 23, 35], "five steps into an episode that is not the first"
    other = collecting(task, seed=5)
    position = CollectorState(other)
    position.load_state_dict(state)
    assert not position.new_episode
    rest = rest_of(other, generator)
    assert len(rest) == TOTAL - SAVED
    assert (rest == expected[SAVED:]).all()


class Counts(gymnasium.Wrapper):
    """Of all its steps, of which nothing depends until there are many."""

    def __init__(self, env):
        super().__init__(env)
        self.steps, self.lately = 0, deque(maxlen=3)

    def step(self, action):
        self.steps += 1
        self.lately.append(self.steps)
        return self.env.step(action)


@pytest.mark.parametrize("task", [Counts], indirect=True)
def test_what_is_kept_from_before_the_episode_is_named(task):
    expected, state, generator, _ = uninterrupted(task)
    other = collecting(task, seed=5)
    position = CollectorState(other)
    message = r"goes on in its episode, .* from before it: Counts.steps, Counts.lately is not what"
    with pytest.warns(UserWarning, match=message):
        position.load_state_dict(state)
    assert not position.new_episode
    assert (rest_of(other, generator) == expected[SAVED:]).all()


# ---------------------------------------------------------------- a new episode


def own_generator(env):
    return Gusts(env, np.random.default_rng())


def noise_object(env):
    return Gusts(env, Noise(np.random.default_rng()))


def hidden_generator(env):
    return Gusts(env, np.random.default_rng().normal)


def in_a_closure(env):
    generator = np.random.default_rng()
    return Gusts(env, lambda: generator.normal())


PAID = r"its replay paid -?[\d.e-]+ at step 1 of the episode where -?[\d.e-]+ was paid"
ENDED = r"its replay of 5 steps ended in another observation: it keeps a state from before"
OWN = r"it draws from a generator of its own \(Gusts\.noise\)"


def assert_starts_anew(task, why, *, during=contextlib.nullcontext):
    """Resumes a collector of Pendulum, and looks at the episode that begins."""
    data, state, generator, own = uninterrupted(task)
    other = collecting(task, seed=0)
    position = CollectorState(other)
    warned = pytest.warns(UserWarning, match=f"a new episode begins .* brought back, {why}")
    with warned, during():
        position.load_state_dict(state)
    assert position.new_episode
    goes_on = PendulumEnv()
    goes_on.np_random = own
    goes_on.reset()
    assert np.array_equal(innermost(other).state, goes_on.state), "the generator goes on"
    data = torch.cat([data[:SAVED], rest_of(other, generator)])
    episodes = data["collector", "traj_ids"].flatten()
    assert episodes.unique_consecutive(return_counts=True)[1].tolist() == [12, 5, 12, 11]
    assert len(episodes.unique()) == 4
    within = episodes[1:] == episodes[:-1]
    arrived, left = data["next", "observation"][:-1], data["observation"][1:]
    assert torch.equal((arrived == left).all(-1), within)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (NormalizeObservation, ENDED),
        (NormalizeReward, PAID),
        (own_generator, OWN),
        (noise_object, OWN),
        (hidden_generator, OWN),
        (in_a_closure, OWN),
    ],
    indirect=["task"],
)
def test_what_cannot_be_replayed_begins_a_new_episode(task, why):
    assert_starts_anew(task, why)


def test_a_replay_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setitem(RecordedEnv.replay.__kwdefaults__, "seconds", 0)
    assert_starts_anew(Task("Pendulum-v1"), "its replay took longer than 0 s")


class Shared(GustsOfTheEpisode):
    """A simulator that others use too."""

    users = 0

    def step(self, action):
        if Shared.users:
            raise ConnectionError("too many users")
        return super().step(action)


def test_a_replay_that_raises_is_given_up(monkeypatch):
    @contextlib.contextmanager
    def in_use():
        with monkeypatch.context() as patch:
            patch.setattr(Shared, "users", 9)
            yield

    why = "Pendulum-v1 raised ConnectionError in its step: too many users"
    assert_starts_anew(Task("Pendulum-v1", wrap=Shared), why, during=in_use)
