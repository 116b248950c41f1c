"""Runs that begin with logged transitions, or are trained on nothing else."""

from __future__ import annotations

import run  # noqa: F401  registers the config's resolvers

import pytest
from envs.test_transitions import as_csv, as_npz, logged
from examples.conftest import EXAMPLES
from examples.test_mage_td3 import TINY
from examples.test_resume import assert_same, outcome
from hydra import compose, initialize_config_dir

from torchrl_mage import get_task

LOG = logged(get_task("Pendulum-v1"), 300)


@pytest.fixture
def train(launch, tmp_path):
    """Runs a script with tiny networks; returns what it printed."""

    def call(name, *overrides, script="mage_td3"):
        folder = f"hydra.run.dir={tmp_path / name}"
        tiny = [
            x for x in TINY if "warmup" not in x and ("world" not in x or script[-4:] != "ddpg")
        ]
        tiny = [x for x in tiny if "world" not in x or script != "td3"]
        return launch(script, folder, *tiny, *overrides, cwd=tmp_path)

    return call


def test_data_fill_the_buffer_and_fit_the_model_before_the_first_step(train, tmp_path):
    as_csv(tmp_path / "log.csv", LOG)
    said = train("run", "data=log.csv", "checkpoint_interval=1000")
    assert "300 transitions of log.csv to begin with" in said.out
    rows, _, networks = outcome(tmp_path / "run")
    assert [row["step"] for row in rows] == ["8", "16", "24"]
    assert float(rows[0]["loss_qvalue"]) > 0, "they stand for the warm-up"
    assert networks["normalizer"]["statistics.count"] == 324
    counts = [v for k, v in networks["world_model"].items() if k.endswith("count")]
    assert counts == [320] * 3, "each once, up to the last fit"


def test_resumed_and_made_longer_it_needs_the_file_no_more(train, launch, tmp_path):
    as_npz(tmp_path / "log.npz", LOG)
    quick = ["data=log.npz", "eval_interval=12"]
    train("whole", *quick)
    train("run", *quick, "total_steps=12")
    (tmp_path / "log.npz").unlink()
    path = tmp_path / "run"
    assert "resumed" in launch("mage_td3", f"resume={path}", "total_steps=24", cwd=tmp_path).out
    assert_same(path, outcome(tmp_path / "whole"))


@pytest.mark.parametrize(
    "script",
    [
        "mage_sac",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("mage_td3", "td3", "mage_ddpg")),
    ],
)
def test_offline_training_and_then_some_steps(train, launch, tmp_path, script):
    as_npz(tmp_path / "log.npz", LOG)
    train("run", "data=log.npz", "total_steps=0", "offline_steps=16", script=script)
    rows, _, networks = outcome(tmp_path / "run")
    assert [row["step"] for row in rows] == ["8", "16"]
    assert float(rows[0]["loss_qvalue"]) > 0
    assert networks["normalizer"]["statistics.count"] == 300, "nothing but the log"
    launch(script, f"resume={tmp_path / 'run'}", "total_steps=8", cwd=tmp_path)
    rows, _, networks = outcome(tmp_path / "run")
    assert [row["step"] for row in rows] == ["8", "16", "24"]
    assert networks["normalizer"]["statistics.count"] == 308


@pytest.mark.parametrize(
    ("overrides", "warmup", "offline"),
    [
        ([], 300, 0),
        (["data=log.csv"], 0, 0),
        (["data=log.csv", "warmup_steps=30"], 30, 0),
        (["data=log.csv", "total_steps=0"], 0, 1500),
        (["data=log.csv", "total_steps=0", "recipe=paper"], 0, 2500),
        (["data=log.csv", "offline_steps=9"], 0, 9),
    ],
)
def test_lengths_with_and_without_data(overrides, warmup, offline):
    with initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
        cfg = compose("mage_td3", overrides)
    assert (cfg.warmup_steps, cfg.offline_steps) == (warmup, offline)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": 3.0}, "transition 0 of data: the reward that is known of Pendulum-v1 is"),
        ({"action": 9.0}, "action_0 = 9 lies outside [-2, 2], the box of Pendulum-v1 (300 of 300"),
    ],
)
def test_data_that_are_not_the_tasks_stop_before_the_first_step(
    train, tmp_path, capfd, change, message
):
    wrong = {name: 0 * LOG[name] + value for name, value in change.items()}
    as_npz(tmp_path / "log.npz", LOG | wrong)
    with pytest.raises(SystemExit):
        train("run", "data=log.npz")
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run" / "networks.pt").exists()
