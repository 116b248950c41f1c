"""A search is a study of runs: what ends, what is stopped early, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from examples.conftest import EXAMPLES
from examples.test_mage_td3 import TINY
from tables import rows

optuna = pytest.importorskip("optuna")

SMALL = [setting for setting in TINY if not setting.startswith(("world_model", "eval_episodes"))]
SPACE = "critic.lr: {low: 1e-4, high: 1e-2, log: true}, policy.actor_delay: {low: 1, high: 9}"


def search(*overrides, runs):
    """Of the script that starts soonest."""
    listed = ",".join(f'"{setting}"' for setting in [*SMALL, "eval_episodes=1", *runs])
    space = ["~space", f"+space={{{SPACE}}}"]
    prune = ["prune.after_trials=1", "prune.after_steps=16"]
    return ["script=td3", "folder=study", f"overrides=[{listed}]", *space, *prune, *overrides]


@pytest.fixture
def tune(launch, tmp_path):
    """Searches in this process, which keeps its own signals; returns the output and the trials."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments):
        said = launch("tune", *arguments, cwd=tmp_path)
        storage = f"sqlite:///{tmp_path / 'study' / 'study.db'}"
        return said, optuna.load_study(study_name="study", storage=storage).trials

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_study_goes_on_and_stops_what_falls_behind(tune, tmp_path):
    _, (first,) = tune(*search("trials=1", runs=["env=cartpole"]))
    path = tmp_path / "study" / "trial_000"
    returns = [float(row["eval_return_mean"]) for row in rows(path)]
    assert first.value == pytest.approx(sum(returns) / 3), "of the evaluations at 8, 16, 24"
    assert first.intermediate_values[8] == pytest.approx(returns[0])
    config = (path / "config.yaml").read_text()
    assert f"actor_delay: {first.params['policy.actor_delay']}\n" in config
    # A pendulum's returns are below zero, a CartPole's above: the second trial falls behind.
    said, trials = tune(*search("trials=2", runs=["env=pendulum", "total_steps=100000"]))
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED"]
    assert trials[1].params["critic.lr"] != first.params["critic.lr"], "no draw is repeated"
    stopped = tmp_path / "study" / "trial_001"
    assert not (stopped / "networks.pt").exists()
    assert 2 <= len(rows(stopped)) < 1000, "at step 16"
    lines = [line for line in said.out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[1] for line in lines] == ["ended", "complete", "pruned"]
    assert lines[1].startswith(f"| 0 | complete | 24 | {first.value:.1f} | ")
    assert said.out.splitlines()[-1].startswith(f"best: python examples/td3.py {SMALL[0]} ")
    assert f"critic.lr={first.params['critic.lr']}" in said.out.splitlines()[-1]
    assert "2/2" in said.err


@pytest.mark.slow
def test_a_run_that_fails_is_named(tune, tmp_path):
    said, trials = tune(*search("trials=1", runs=["policy.tau=2"]))
    assert trials[0].state.name == "FAIL"
    log = tmp_path / "study" / "trial_000.log"
    assert "policy.tau = 2: must be a number, above 0, at most 0.5" in log.read_text()
    assert "trial 0 failed with ['critic.lr=" in said.out
    assert "study/trial_000.log says why" in said.out
    assert "best:" not in said.out


@pytest.mark.slow
def test_a_search_that_is_stopped_goes_on_with_the_run_under_way(tune, tmp_path):
    wanted = search("trials=1", runs=["total_steps=3000", "eval_interval=1000"])
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "tune.py"), *wanted],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    path = tmp_path / "study" / "trial_000"
    deadline = time.monotonic() + 300
    while not ((path / "metrics.csv").exists() and rows(path)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert not (path / "networks.pt").exists()
    _, (trial,) = tune(*wanted)
    assert trial.state.name == "COMPLETE"
    assert "resumed" in (tmp_path / "study" / "trial_000.log").read_text()
    assert sorted(trial.intermediate_values) == [1000, 2000, 3000]
