"""The main job, run for seconds on tiny networks: what it writes, repeats and refuses."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from omegaconf import OmegaConf
from tables import rows, untimed

from torchrl_mage import Task, get_task, register_task

SCRIPT = Path(__file__).parents[2] / "examples" / "mage_td3.py"
TINY = [
    "compile=false",
    "total_steps=24",
    "warmup_steps=15",
    "eval_interval=8",
    "eval_episodes=2",
    "log_interval=4",
    "world_model.num_cells=[8]",
    "world_model.ensemble_size=3",
    "world_model.fit_interval=5",
    "world_model.fit_batches=2",
    "world_model.batch_size=8",
    "policy.updates_per_step=2",
    "policy.batch_size=7",
    "actor.num_cells=[8]",
    "critic.num_cells=[8]",
]


@pytest.fixture
def run(launch, capfd):
    """Runs the script with tiny networks; returns what it printed."""

    def call(path, *overrides, refused=False):
        arguments = ["mage_td3", f"hydra.run.dir={path}", *TINY, *overrides]
        if not refused:
            return launch(*arguments, cwd=path.parent)
        with pytest.raises(SystemExit):  # hydra turns what the script raises into an exit
            launch(*arguments, cwd=path.parent)
        return capfd.readouterr()

    return call


def test_run_folder(tmp_path, run):
    path = tmp_path / "run"
    result = run(path)
    table = rows(path)
    assert list(table[0])[:4] == ["step", "eval_return_mean", "eval_return_std", "wall_time"]
    assert [row["step"] for row in table] == ["8", "16", "24"]
    assert table[0]["loss_qvalue"] == "", "no update during warm-up"
    assert table[0]["loss_world_model"] != "", "the model is fitted during warm-up too"
    for name in list(table[0]):
        if name != "episode_return":  # an episode is longer than the run
            assert torch.isfinite(torch.tensor(float(table[2][name]))), name
    last = result.out.strip().splitlines()[-1]
    mean, std = float(table[-1]["eval_return_mean"]), float(table[-1]["eval_return_std"])
    assert last == f"final evaluation return: {mean:.2f} +- {std:.2f} over 2 episodes"
    assert "24/24" in result.err, "the progress bar reaches the end"
    assert "return=" in result.err
    assert (path / "learning_curve.png").read_bytes()[1:4] == b"PNG"
    assert len(list((path / "logs").rglob("loss_qvalue.csv"))) == 1
    config = OmegaConf.load(path / "config.yaml")
    assert (config.env.name, config.policy.batch_size) == ("Pendulum-v1", 7)
    networks = torch.load(path / "networks.pt", weights_only=True)
    assert set(networks) == {"actor", "critics", "world_model", "normalizer", "reward_scaler"}
    assert networks["normalizer"]["statistics.count"] == 24


def test_the_same_seed_repeats_and_another_does_not(tmp_path, run):
    tables = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, f"seed={seed}", "env=cartpole")
        tables.append(untimed(tmp_path / name))
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]
    states = [torch.load(tmp_path / name / "networks.pt") for name in ("a", "b")]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("task", ["halfcheetah", "hopper", "walker2d", "swimmer", "pusher"])
def test_every_task_runs(tmp_path, run, task):
    run(tmp_path / task, f"env={task}", "total_steps=17", "eval_interval=17", "eval_episodes=1")
    (row,) = rows(tmp_path / task)
    assert all(
        value and torch.isfinite(torch.tensor(float(value)))
        for name, value in row.items()
        if name != "episode_return"
    )


class FailsLater(gymnasium.Wrapper):
    """A pendulum that goes wrong at its tenth step."""

    def __init__(self, fault):
        super().__init__(PendulumEnv())
        self.fault, self.steps = fault, 0

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = self.env.step(action)
        if self.steps == 10:
            observation, reward = self.fault(observation, reward)
        return observation, reward, *rest


def broken(observation, reward):
    raise ConnectionError("the simulator is gone")


def hanging(observation, reward):
    time.sleep(60)
    return observation, reward


FAULTS = {
    "nan": (
        lambda o, r: (np.full_like(o, np.nan), r),
        "step 10: the environment test/nan-v0 gave next.observation = nan (3 of 3 values not "
        "finite). Nothing was trained on it",
    ),
    "shape": (lambda o, r: (o[:2], r), "an observation of shape (2,); its space says (3,)"),
    "raise": (broken, "test/raise-v0 raised ConnectionError in its step: the simulator is gone"),
    "hang": (hanging, "test/hang-v0 has not ended its step within 0.5 s"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_environment_is_named_and_the_checkpoint_intact(tmp_path, run, name):
    fault, message = FAULTS[name]
    task, path = f"test/{name}-v0", tmp_path / "run"
    gymnasium.register(
        task, lambda: FailsLater(fault), max_episode_steps=20, disable_env_checker=True
    )
    register_task(Task(task, get_task("Pendulum-v1").reward))
    overrides = [f"env.name={task}", "eval_interval=24", "env_timeout=0.5", "checkpoint_interval=8"]
    result = run(path, *overrides, refused=True)
    assert message in result.err
    assert f"resume={path} continues from its newest checkpoint, step_000000008" in result.out
    # The simulator is mended: the run goes on to its end.
    gymnasium.registry[task].entry_point = lambda: FailsLater(lambda o, r: (o, r))
    run(path, f"resume={path}", *overrides)
    assert [row["step"] for row in rows(path)] == ["24"]


@pytest.mark.slow
def test_the_same_seed_repeats_compiled(tmp_path, run):
    for name in ("a", "b"):
        run(tmp_path / name, "compile=true")
    a, b = (untimed(tmp_path / name) for name in ("a", "b"))
    assert a == b


def test_reward_and_termination_may_be_learned(tmp_path, run):
    path = tmp_path / "run"
    run(path, "env=cartpole", "reward=learned", "termination=learned", "reward_model.num_cells=[8]")
    last = rows(path)[-1]
    assert float(last["loss_reward"]) >= 0
    assert float(last["loss_termination"]) > 0
    networks = torch.load(path / "networks.pt", weights_only=True)
    assert networks["reward"]["reward_statistics.count"] == 20
    assert networks["termination"]["observation_statistics.count"] == 20


def test_an_unknown_reward_must_be_learned(tmp_path, run):
    register_task(Task("test/Unknown-v0"))
    gymnasium.register("test/Unknown-v0", PendulumEnv, max_episode_steps=20)
    override = "env.name=test/Unknown-v0"
    message = run(tmp_path / "known", override, refused=True).err
    assert "no reward of test/Unknown-v0 is known: pass reward=learned" in message
    run(tmp_path / "learned", override, "reward=learned", "reward_model.num_cells=[8]")
    assert float(rows(tmp_path / "learned")[-1]["loss_reward"]) > 0


def test_dyna_is_an_override(tmp_path, run):
    run(tmp_path / "dyna", "loss.gradient_coeff=0")
    assert "action_gradient_error" not in rows(tmp_path / "dyna")[-1]
    assert rows(tmp_path / "dyna")[-1]["td_error"] != ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env=humanoid", "Could not find 'env/humanoid'"),
        ("env.id=Humanoid-v5", "no reward of Humanoid-v5 is known: pass reward=learned"),
        ("loss.lambda=1", "Key 'lambda' is not in struct"),
        ("loss.lmbda=-1", "loss.lmbda = -1: must be a number, at least 0"),
        ("loss.lmbda=nan", "loss.lmbda = nan: must be a number, at least 0"),
        ("world_model.ensemble_size=0", "ensemble_size = 0: must be an integer, at least 1"),
        ("device=tpu", "device = 'tpu': must be one of auto, cpu, cuda"),
        ("total_steps=1e4", "total_steps = 10000.0: must be an integer, at least 0"),
        ("total_steps=0", "total_steps = 0: must be at least 1, or 0 with data=FILE for offline"),
        ("offline_steps=9", "offline_steps = 9: must be at most 0, or more with data=FILE"),
        ("actor.num_cells=[8,0]", "actor.num_cells = 0: must be an integer, at least 1"),
        ("on_divergence=ignore", "on_divergence = 'ignore': must be one of stop, reset_agent"),
    ],
)
def test_bad_overrides_are_named(tmp_path, run, override, message):
    assert message in run(tmp_path / "run", override, refused=True).err
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_named(tmp_path, run):
    message = run(tmp_path / "run", "device=cuda", refused=True).err
    assert "device = 'cuda': PyTorch sees 0 GPUs here; use device=cpu" in message


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="has W&B")
def test_a_missing_logger_is_named(tmp_path, run):
    assert 'pip install -e ".[loggers]"' in run(tmp_path / "r", "logger=wandb", refused=True).err


def test_a_run_that_is_all_warm_up_says_so(tmp_path, run):
    said = run(tmp_path / "run", "total_steps=10").out
    assert "nothing was learned in 10 steps, all of them warm-up: raise total_steps" in said
    assert "nothing was learned" not in run(tmp_path / "longer").out


def test_bad_overrides_are_named_all_at_once(tmp_path, run):
    message = run(tmp_path / "run", "seed=-1", "policy.tau=0", "critic.lr=x", refused=True).err
    assert "3 settings are out of range" in message
    for line in (
        "seed = -1: must be an integer, at least 0",
        "policy.tau = 0: must be a number, above 0, at most 0.5",
        "critic.lr = 'x': must be a number, above 0",
    ):
        assert line in message


def test_divergence_stops_with_the_batch_and_a_checkpoint(tmp_path, run):
    path = tmp_path / "run"
    result = run(path, "critic.lr=1e30", "checkpoint_interval=14", refused=True)
    assert re.search(r"step 1[56]: training diverged, .* = ", result.err)
    assert f"resume={path} continues from its newest checkpoint, step_000000014" in result.out
    kept = sorted(c.name for c in (path / "checkpoints").glob("step_*"))
    assert kept == ["step_000000000", "step_000000014"]
    (batch,) = path.glob("diverged_step_0000000*.pt")
    saved = torch.load(batch, weights_only=True)
    assert saved["states"]["observation"].shape == (7, 3)
    assert saved["transition"]["action"].shape == (1, 1)


def test_divergence_may_reset_the_agent(tmp_path, run):
    out = run(tmp_path / "run", "critic.lr=1e30", "on_divergence=reset_agent")
    assert "a new agent takes over" in out.out + out.err
    networks = torch.load(tmp_path / "run" / "networks.pt", weights_only=True)
    assert torch.isfinite(networks["normalizer"]["statistics.mean"]).all()


def test_multi_step_imagination_trains_on_imagined_states(tmp_path, run):
    """Real states lie on the unit circle; those of an untrained model do not."""
    path = tmp_path / "run"
    stop = ["critic.lr=1e30", "checkpoint_interval=14"]  # diverges: its batch is saved
    run(path, "policy.imagination_steps=3", *stop, refused=True)
    (batch,) = path.glob("diverged_step_*.pt")
    states = torch.load(batch, weights_only=True)["states"]["observation"]
    assert ((states[:, :2].norm(dim=-1) - 1).abs() > 1e-3).any()


def test_any_environment_with_nothing_known_of_it(tmp_path, run):
    path = tmp_path / "run"
    run(path, "env=custom", "env.name=InvertedPendulum-v5")
    last = rows(path)[-1]
    assert float(last["loss_reward"]) > 0
    assert float(last["loss_termination"]) > 0
    networks = torch.load(path / "networks.pt", weights_only=True)
    assert networks["reward"]["observation_statistics.mean"].shape == (4,)
    refused = run(tmp_path / "known", "env=custom", "env.name=Pusher-v4.5", refused=True)
    assert "'Pusher-v4.5' is neither a task" in refused.err


def test_when_an_unknown_environment_ends_must_be_learned(tmp_path, run):
    unknown = ["env=custom", "env.name=InvertedPendulum-v5", "termination=known"]
    said = run(tmp_path / "run", *unknown, refused=True).err
    assert "when InvertedPendulum-v5 ends is not known: pass termination=learned" in said


def test_a_task_of_the_control_suite(tmp_path, run):
    pytest.importorskip("dm_control")
    run(tmp_path / "run", "env=dmc", "env.name=cartpole-balance")
    assert float(rows(tmp_path / "run")[-1]["loss_reward"]) > 0


def test_help_names_the_task_and_the_settings():
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    )
    for word in ("env=pendulum", "halfcheetah", "loss.gradient_coeff=1.0", "seed=0"):
        assert word in result.stdout
