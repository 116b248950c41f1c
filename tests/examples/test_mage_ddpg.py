"""MAGE-DDPG in the true dynamics, run for seconds, and its experiment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from examples.test_resume import finished, outcome, start

SCRIPT = Path(__file__).parents[2] / "examples" / "mage_ddpg.py"
TINY = [
    "compile=false",
    "total_steps=60",
    "warmup_steps=20",
    "eval_interval=30",
    "eval_episodes=1",
    "policy.batch_size=8",
    "actor.num_cells=[8]",
    "critic.num_cells=[8]",
]


def test_a_run_repeats(tmp_path):
    outcomes = []
    for name in ("a", "b"):
        path = tmp_path / name
        finished(start(f"hydra.run.dir={path}", *TINY, cwd=tmp_path, script=SCRIPT))
        outcomes.append(outcome(path))
    assert outcomes[0][:2] == outcomes[1][:2]
    torch.testing.assert_close(outcomes[0][2], outcomes[1][2], rtol=0, atol=0)
    last = outcomes[0][0][-1]
    assert float(last["action_gradient"]) > 0
    critic = outcomes[0][2]["critic"]
    assert {tensor.shape[0] for key, tensor in critic.items() if "weight" in key} == {1}


def test_collapse_sweeps_both_versions(tmp_path):
    """The sweep of Figure 5, cut short: a run for each lambda."""
    command = [sys.executable, str(SCRIPT), "-m", "+experiment=collapse", "seed=0", *TINY]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.count("final evaluation return: ") == 2
    tables = sorted((tmp_path / "runs" / "collapse").rglob("metrics.csv"))
    assert len(tables) == 2
    written = [table.stat().st_mtime_ns for table in tables[0].parent.glob("checkpoints/*")]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout.count("resumed") == again.stdout.count("final evaluation return: ") == 2
    after = [table.stat().st_mtime_ns for table in tables[0].parent.glob("checkpoints/*")]
    assert after == written, "nothing was trained twice"
