"""What a run has trained is loaded without Hydra and does what it did in the run."""

from __future__ import annotations

import csv
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from examples.test_mage_td3 import TINY
from gymnasium.wrappers import TransformAction
from tensordict import TensorDict
from tensordict.nn import TensorDictModule as Mod
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_mage import LoadedRun, LoadError, Task, load_run
from torchrl_mage.trainers import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loading")


@pytest.fixture
def trained(launch, folder):
    """A tiny run of a script, trained once."""

    def call(script, *overrides):
        path = folder / "_".join([script, *overrides]).replace("=", "")
        if not path.exists():
            tiny = [x for x in TINY if script.startswith("mage") or "world_model" not in x]
            launch(script, f"hydra.run.dir={path}", *tiny, *overrides, cwd=folder)
        return path

    return call


CASES = [
    ("mage_td3", ()),
    ("mage_td3", ("env=hopper", "critic.layer_norm=true", "critic.units=range")),
    ("mage_sac", ("env=cartpole", "reward=learned", "termination=learned")),
    ("td3", ()),
    ("sac", ()),
]


@pytest.mark.parametrize(("script", "overrides"), CASES)
def test_the_policy_earns_what_the_run_says(trained, script, overrides):
    """The last evaluation again: the same networks, statistics and seed give the same return."""
    path = trained(script, *overrides)
    run = load_run(path)
    with (path / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    seed = run.settings["seed"] + int(last["step"])
    again = evaluate(run.task.make_env(), run.policy, episodes=2, seed=seed)
    assert again.mean == float(last["eval_return_mean"])


def test_it_acts_in_a_plain_gymnasium_environment(trained):
    run = load_run(trained("mage_td3"))
    env, plain = run.task.make_env(), gymnasium.make(run.task.name)
    env.set_seed(3)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = env.rollout(20, run.policy)
    plain.reset(seed=3)
    observation, _ = plain.reset()
    for t in range(20):
        action = run.act(observation)
        np.testing.assert_allclose(action, 2 * expected["action"][t].numpy(), atol=1e-5)
        observation, reward, *_ = plain.step(action)
        assert reward == pytest.approx(expected["next", "reward"][t].item(), abs=1e-4)
    assert run.act(np.zeros((5, 3), np.float32)).shape == (5, 1)


def test_actions_are_those_of_the_wrapped_environment():
    """Of [-1, 1], 0.5 is 7.5 in the wrap's [0, 10], whatever the environment inside has."""
    box = gymnasium.spaces.Box(0, 10, (1,))
    task = Task("Pendulum-v1", wrap=lambda env: TransformAction(env, lambda a: a / 5 - 1, box))
    policy = Mod(lambda state: state[..., :1] * 0 + 0.5, ["observation"], ["action"])
    run = LoadedRun(policy, world_model=policy, critics=[], task=task, settings={})
    assert run.act(np.ones((4, 3))).tolist() == [[7.5]] * 4


def test_world_model_and_critics_are_the_runs(trained):
    path = trained(*("mage_sac", "env=cartpole", "reward=learned", "termination=learned"))
    run = load_run(path)
    td = TensorDict(observation=torch.zeros(6, 4), action=torch.zeros(6, 1), batch_size=[6])
    following = run.world_model(td.clone())["next"]
    assert following["observation"].shape == (6, 4)
    assert following["reward"].shape == following["termination_probability"].shape == (6, 1)
    values = [critic(td.clone())["state_action_value"] for critic in run.critics]
    assert len(values) == 2
    assert not torch.equal(*values)
    state = torch.load(path / "networks.pt", weights_only=True)
    weights = state["critics"]["module.0.weight"]
    torch.testing.assert_close(run.critics[1][1].module[0].weight, weights[1])
    assert not any(p.requires_grad for p in run.world_model.parameters())


def test_the_best_networks_and_those_of_a_run_that_was_stopped(trained, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(trained("mage_td3"), path)
    with (path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["eval_return_mean"]))
    run = load_run(path, best=True)
    again = evaluate(run.task.make_env(), run.policy, episodes=2, seed=int(best["step"]))
    assert again.mean == float(best["eval_return_mean"])
    whole = load_run(path).policy.state_dict()
    (path / "networks.pt").unlink()
    torch.testing.assert_close(load_run(path).policy.state_dict(), whole)


def test_what_is_no_run_is_named(trained, tmp_path):
    with pytest.raises(LoadError, match=r"holds no run: it has no config.yaml\. Name the folder"):
        load_run(tmp_path)
    path = tmp_path / "run"
    shutil.copytree(trained("mage_td3"), path)
    (path / "networks.pt").write_bytes((path / "networks.pt").read_bytes()[:-100])
    with pytest.raises(LoadError, match=r"networks.pt is damaged or holds more than tensors"):
        load_run(path)
    state = torch.load(path / "best_networks.pt")
    del state["normalizer"]
    torch.save(state, path / "networks.pt")
    with pytest.raises(LoadError, match="is the run of another version of this package"):
        load_run(path)
    (path / "best_networks.pt").unlink()
    with pytest.raises(LoadError, match="has no best_networks.pt: none of its evaluations"):
        load_run(path, best=True)
    (path / "networks.pt").unlink()
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(LoadError, match="has neither networks.pt nor a checkpoint"):
        load_run(path)


def test_a_model_free_run_has_no_world_model(trained):
    run = load_run(trained("td3"))
    with pytest.raises(LoadError, match="was shipped so: it has no world model"):
        run.world_model(TensorDict(observation=torch.zeros(3)))
