"""An interrupted and resumed run ends bit for bit where an uninterrupted one does."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from examples.test_mage_td3 import SCRIPT, TINY
from tables import untimed

from torchrl_mage.trainers import EXIT_INTERRUPTED

SETTINGS = [*TINY, "total_steps=60", "checkpoint_interval=7", "eval_interval=20"]
SETTINGS += ["loss.horizon=2", "policy.imagination_steps=5"]
LONGER = "total_steps=120"


def start(*overrides, cwd, script=SCRIPT):
    return subprocess.Popen(
        [sys.executable, str(script), *overrides],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begin(path, *overrides):
    return start(f"hydra.run.dir={path}", *SETTINGS, *overrides, cwd=path.parent)


def finished(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def outcome(path):
    points = {
        str(file.relative_to(path)): file.read_text() for file in (path / "logs").rglob("*.csv")
    }
    return untimed(path), points, torch.load(path / "networks.pt", weights_only=True)


def wait_for_a_checkpoint(path, process):
    deadline = time.monotonic() + 60
    while not list(path.glob("checkpoints/step_*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same(path, reference):
    rows, points, networks = outcome(path)
    expected_rows, expected_points, expected_networks = reference
    assert rows == expected_rows
    assert points == expected_points
    torch.testing.assert_close(networks, expected_networks, rtol=0, atol=0)


@pytest.mark.parametrize(
    "task",
    [
        "cartpole",
        *(
            pytest.param(task, marks=pytest.mark.slow)
            for task in ("pendulum", "hopper", "halfcheetah", "walker2d", "swimmer", "pusher")
        ),
    ],
)
def test_sigterm_checkpoints_at_once_and_resume_is_exact(tmp_path, task):
    finished(begin(tmp_path / "whole", f"env={task}"))
    path = tmp_path / "stopped"
    process = begin(path, f"env={task}", "checkpoint_interval=1000")
    while "/60" not in (line := process.stdout.readline()):
        assert line, "ended before its first step"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, out
    assert f"continue with resume={path}" in out
    first, last = sorted(c.name for c in path.glob("checkpoints/step_*"))
    assert (first, last > first) == ("step_000000000", True)
    assert "resumed" in finished(start(f"resume={path}", cwd=tmp_path))
    assert_same(path, outcome(tmp_path / "whole"))
    again = finished(start(f"resume={path}", cwd=tmp_path))  # at its end: nothing but the result
    assert again.strip().splitlines()[-1].startswith("final evaluation return: ")
    assert_same(path, outcome(tmp_path / "whole"))


def test_a_run_that_is_made_longer_is_the_longer_one(tmp_path, launch):
    """Bit for bit, where the shorter run's last step has an evaluation in the longer one too."""
    quick = ["checkpoint_interval=60", "eval_interval=30", "eval_episodes=1"]
    settings = [*SETTINGS, "env=cartpole", *quick]
    launch("mage_td3", f"hydra.run.dir={tmp_path / 'whole'}", *settings, LONGER, cwd=tmp_path)
    path = tmp_path / "run"
    launch("mage_td3", f"hydra.run.dir={path}", *settings, cwd=tmp_path)
    assert len(outcome(path)[0]) == 2
    said = launch("mage_td3", f"resume={path}", LONGER, cwd=tmp_path)
    assert f"resumed {path} at step 60" in said.out
    assert "120/120" in said.err
    assert_same(path, outcome(tmp_path / "whole"))


SMALL = ["compile=false", "warmup_steps=20", "actor.num_cells=[8]", "critic.num_cells=[8]"]
SMALL += ["policy.batch_size=8", "eval_episodes=1"]
MODEL = ["world_model.num_cells=[8]", "world_model.fit_batches=2", "policy.updates_per_step=2"]
OTHERS = {
    "td3": [*SMALL, "total_steps=3000", "eval_interval=1500"],
    "sac": [*SMALL, "total_steps=1000", "eval_interval=500"],
    "mage_ddpg": [*SMALL, "total_steps=120", "eval_interval=60", "policy.updates_per_step=2"],
    "gradient_error": [*SMALL, *MODEL, "total_steps=120", "horizon=20", "trajectories=3"],
    "mage_td3": [*SMALL, *MODEL, "total_steps=120", "reward=learned", "termination=learned"],
    "mage_sac": [*SMALL, *MODEL, "total_steps=120"],
    "mage_td3 compiled": [*SMALL, *MODEL, "total_steps=120", "compile=true"],
}


@pytest.mark.parametrize(
    "name",
    [
        "mage_td3",
        pytest.param("mage_ddpg", marks=pytest.mark.slow),
        pytest.param("mage_td3 compiled", marks=pytest.mark.slow),
        pytest.param("td3", marks=pytest.mark.slow),
        pytest.param("sac", marks=pytest.mark.slow),
        pytest.param("mage_sac", marks=pytest.mark.slow),
        pytest.param("gradient_error", marks=pytest.mark.slow),
    ],
)
def test_the_other_scripts_go_on_exactly_too(tmp_path, name):
    script, settings = SCRIPT.with_name(f"{name.split()[0]}.py"), OTHERS[name]
    whole, path = tmp_path / "whole", tmp_path / "stopped"
    out = finished(start(f"hydra.run.dir={whole}", *settings, cwd=tmp_path, script=script))
    assert out.strip().splitlines()[-1].startswith("final evaluation return: ")
    reference = outcome(whole)
    assert all(math.isfinite(float(value)) for value in reference[0][-1].values() if value)
    process = start(f"hydra.run.dir={path}", *settings, cwd=tmp_path, script=script)
    while not re.search(r" [1-9]\d*/(3000|120) ", line := process.stdout.readline()):
        assert line, "ended before its first step"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_INTERRUPTED, out
    assert "resumed" in finished(start(f"resume={path}", cwd=tmp_path, script=script))
    assert_same(path, reference)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_loses_nothing(tmp_path, kills):
    """Killed whenever, during the writing of checkpoints too, and resumed until it ends."""
    rng = random.Random(0)
    settings = ["env=cartpole", "checkpoint_interval=1"]
    finished(begin(tmp_path / "whole", *settings))
    path = tmp_path / "killed"
    process = begin(path, *settings)
    for _ in range(kills):
        wait_for_a_checkpoint(path, process)
        known = sorted(path.glob("checkpoints/step_*"))[-1]
        deadline = time.monotonic() + 60
        while sorted(path.glob("checkpoints/step_*"))[-1:] == [known]:  # some progress each time
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        process = start(f"resume={path}", cwd=tmp_path)
    finished(process)
    assert_same(path, outcome(tmp_path / "whole"))
