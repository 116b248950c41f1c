"""Logged transitions are read as a run collects them, and what is wrong with them is named."""

from __future__ import annotations

import csv
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete
from torch.nn.functional import one_hot

from torchrl_mage import Task, get_task, register_task
from torchrl_mage.envs import DataError, read_transitions

TASK = get_task("Pendulum-v1")


def logged(task, steps, seed=0):
    """What a user's own loop writes down, in raw units."""
    env = task.make_gymnasium()
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    rows = []
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, following, terminated, truncated))
        observation = env.reset()[0] if terminated or truncated else following
    names = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
    return {
        name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


def as_csv(path, log, leave_out=()):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = {
            name if values.ndim == 1 else f"{name}_{i}": column
            for name, values in log.items()
            for i, column in enumerate(np.atleast_2d(values.T))
            if name not in leave_out
        }
        writer.writerow(["time", *columns])
        writer.writerows(zip(range(len(log["reward"])), *columns.values(), strict=True))
    return path


def as_npz(path, log):
    np.savez(path, **log)
    return path


@pytest.mark.parametrize("name", ["Pendulum-v1", "torchrl_mage/ContinuousCartPole-v1", "Hopper-v5"])
def test_a_log_gives_what_the_environment_gives(tmp_path, name):
    """The same actions in the TorchRL environment pay the same and end the same."""
    task = get_task(name)
    log = logged(task, 230)
    data = read_transitions(as_npz(tmp_path / "log.npz", log), task)
    env = task.make_env()
    env.set_seed(0)
    td = env.reset(seed=0)
    for t in range(40):
        torch.testing.assert_close(td["observation"], data["observation"][t])
        td = env.step(td.set("action", data["action"][t]))["next"]
        for key in ("observation", "reward", "terminated", "done"):
            torch.testing.assert_close(td[key], data["next", key][t], rtol=1e-5, atol=1e-5)
        if td["done"]:
            break
    assert data["action"].abs().max() <= 1
    assert data["next", "done"].sum() == (log["terminated"] | log["truncated"]).sum() > 0


def test_a_csv_file_is_the_same_whatever_its_columns_order_and_spelling(tmp_path):
    log = logged(TASK, 210)
    expected = read_transitions(as_npz(tmp_path / "log.npz", log), TASK)
    reversed_log = dict(reversed(log.items()))
    found = read_transitions(as_csv(tmp_path / "log.csv", reversed_log), TASK)
    assert (found == expected).all()
    assert found["next", "done"].sum() == 1, "truncated at 200"
    assert not found["next", "terminated"].any()
    endless = as_csv(tmp_path / "endless.csv", log, leave_out=["truncated"])
    assert not read_transitions(endless, TASK)["next", "done"].any()


PARTS = "torchrl_mage_test/Parts-v0"


class Parts(gymnasium.Env):
    """Observes a choice and a matrix; counts its steps."""

    observation_space = Dict({"b": Box(-9, 9, (1, 2)), "a": Discrete(3)})
    action_space = Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.seen(), {}

    def step(self, action):
        self.steps += 1
        return self.seen(), float(action[1]), self.steps == 4, False, {}

    def seen(self):
        return {"a": self.steps % 3, "b": np.full((1, 2), self.steps, np.float32)}


@pytest.mark.parametrize("plain", [True, False])
def test_a_minari_dataset(tmp_path, monkeypatch, plain):
    """Stored with Minari's own API: what the plain environment observes, or the task's."""
    minari = pytest.importorskip("minari")
    EpisodeBuffer = minari.data_collector.EpisodeBuffer
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setitem(gymnasium.registry, PARTS, EnvSpec(PARTS, Parts))
    task = register_task(Task(PARTS))
    env = gymnasium.make(PARTS) if plain else task.make_gymnasium()
    env.action_space.seed(0)
    episodes, taken = [], []
    for _ in range(3):
        seen, actions, steps = [env.reset()[0]], [], []
        while not (steps and steps[-1][0]):
            actions.append(env.action_space.sample())
            observation, reward, *ends, _ = env.step(actions[-1])
            seen.append(observation)
            steps.append((ends[0], ends[1], reward))
        terminations, truncations, rewards = map(list, zip(*steps, strict=True))
        if plain:
            seen = {key: np.array([one[key] for one in seen]) for key in seen[0]}
        episodes.append(
            EpisodeBuffer(
                observations=seen if plain else np.array(seen),
                actions=np.array(actions),
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
        taken += actions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari's own, of fields that are left empty
        minari.create_dataset_from_buffers(
            "torchrl_mage/parts-v0",
            episodes,
            observation_space=env.observation_space,
            action_space=env.action_space,
        )
    data = read_transitions("minari:torchrl_mage/parts-v0", task)
    assert data.shape == (12,)
    steps = torch.arange(4).repeat(3)
    wanted = torch.cat([one_hot(steps % 3, 3), steps[:, None].expand(12, 2)], 1).float()
    assert torch.equal(data["observation"], wanted)
    assert torch.equal(data["next", "observation"][:, 3:], wanted[:, 3:] + 1)
    raw = torch.from_numpy(np.array(taken))
    torch.testing.assert_close(data["action"], torch.stack([raw[:, 0], raw[:, 1] / 2 - 1], 1))
    torch.testing.assert_close(data["next", "reward"], raw[:, 1:])
    assert data["next", "terminated"].flatten().tolist() == [False, False, False, True] * 3
    with pytest.raises(DataError, match=r"has \['torchrl_mage/parts-v0'\]: `minari download no"):
        read_transitions("minari:no/such-v0", task)
    with pytest.raises(DataError, match="observation has 5 features, that of Pendulum-v1 3 here"):
        read_transitions("minari:torchrl_mage/parts-v0", TASK)


def broken(**columns):
    log = logged(TASK, 6)
    for name, change in columns.items():
        log[name] = change(log[name])
    return {name: values for name, values in log.items() if values is not None}


def at(index, value):
    def change(values):
        values = values.astype(float)
        values[index] = value
        return values

    return change


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (broken(next_observation=lambda x: None), r"lacks next_observation: a transition has"),
        (broken(observation=lambda x: x[:, :2]), r"observation has 2 features, that of Pend.* 3 h"),
        (broken(reward=lambda x: x[:4]), r"observation has 6 rows, reward 4"),
        (broken(action=at((2, 0), 2.5)), r"ion 2: action_0 = 2.5 lies outside \[-2, 2\].*1 of 6"),
        (broken(next_observation=at((3, 1), np.nan)), r"3: next_observation_1 = nan, must be fin"),
        (broken(reward=at(4, 1e300)), r"transition 4: reward = 1e\+300, must be finite"),
        (broken(terminated=at(5, 0.5)), r"transition 5: terminated = 0.5, must be 0 or 1"),
        (broken(action=lambda x: x.astype(str)), r"action has the dtype <U32; it must be real"),
        (broken(action=lambda x: x.astype(object)), r"is damaged, or holds more than numbers"),
        ({name: x[:0] for name, x in broken().items()}, "holds no transition"),
    ],
)
def test_what_is_wrong_with_a_log_is_named(tmp_path, log, message):
    with pytest.raises(DataError, match=message):
        read_transitions(as_npz(tmp_path / "log.npz", log), TASK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks observation, action, reward, next_observation, terminated"),
        ("reward,terminated\n1,0\n2\n", "transition 1: 1 values, the first line names 2 columns"),
        ("reward,terminated\n1,0\n,0\n", "transition 1: reward is '', no number"),
        ("reward\n\xff", "is no text of comma-separated values"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named(tmp_path, text, message):
    (tmp_path / "log.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_transitions(tmp_path / "log.csv", TASK)


def test_what_is_no_source_is_named(tmp_path):
    with pytest.raises(DataError, match=r"log.csv: there is no such file, seen from"):
        read_transitions(tmp_path / "log.csv", TASK)
    with pytest.raises(DataError, match=r"log.txt is neither a .csv nor a .npz file nor minari:ID"):
        read_transitions("log.txt", TASK)
    (tmp_path / "log.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"log.npz is damaged"):
        read_transitions(tmp_path / "log.npz", TASK)
