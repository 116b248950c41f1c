"""The model-free baseline, run for seconds: it repeats, and goes on where it was stopped."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

from examples.test_resume import assert_same, finished, outcome, start

from torchrl_mage.trainers import EXIT_INTERRUPTED

SCRIPT = Path(__file__).parents[2] / "examples" / "td3.py"
TINY = [
    "compile=false",
    "total_steps=3000",
    "warmup_steps=20",
    "eval_interval=1500",
    "eval_episodes=1",
    "policy.batch_size=8",
    "actor.num_cells=[8]",
    "critic.num_cells=[8]",
]


def test_a_stopped_run_ends_as_a_whole_one(tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "stopped"
    out = finished(start(f"hydra.run.dir={whole}", *TINY, cwd=tmp_path, script=SCRIPT))
    assert out.strip().splitlines()[-1].startswith("final evaluation return: ")
    reference = outcome(whole)
    assert [row["step"] for row in reference[0]] == ["1500", "3000"]
    assert all(math.isfinite(float(value)) for value in reference[0][-1].values())
    process = start(f"hydra.run.dir={path}", *TINY, cwd=tmp_path, script=SCRIPT)
    while "/3000" not in (line := process.stdout.readline()):
        assert line, "ended before its first step"
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, out
    assert "resumed" in finished(start(f"resume={path}", cwd=tmp_path, script=SCRIPT))
    assert_same(path, reference)
