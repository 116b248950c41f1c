"""pytest tests/benchmarks/test_run.py: where the seconds of a short run go, by part.

A hundred steps after the warm-up and one evaluation of three episodes, by the recipe and the
precision. Of some: ``-k "pendulum and fast"``; the paper's HalfCheetah takes ten minutes.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrl_mage.trainers.hardware import has_fast_bfloat16

SCRIPT = Path(__file__).parents[2] / "examples" / "mage_td3.py"
WARMUP = {"pendulum": 100, "halfcheetah": 1000}
LEARNING = 100


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("task", WARMUP)
def test_seconds_by_part(benchmark, tmp_path, task, recipe, precision):
    if precision == "bf16" and not has_fast_bfloat16(torch.device("cpu")):
        pytest.skip("no fast bfloat16 products here")
    steps = WARMUP[task] + LEARNING
    command = [sys.executable, str(SCRIPT), f"env={task}", f"recipe={recipe}"]
    command += [f"precision={precision}", f"warmup_steps={WARMUP[task]}", f"total_steps={steps}"]
    command += [f"eval_interval={steps}", "eval_episodes=3", f"hydra.run.dir={tmp_path}"]
    benchmark.pedantic(subprocess.run, [command], {"check": True, "capture_output": True}, rounds=1)
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    timed = [key for key in row if key.startswith("wall_time_") and key != "wall_time_rest"]
    parts = {key.removeprefix("wall_time_"): float(row[key]) for key in sorted(timed)}
    # Imports and what is built, logged and saved: all that the run's own parts are not.
    parts["rest"] = benchmark.stats.stats.total - sum(parts.values())
    benchmark.extra_info.update(run=f"{task} {recipe} {precision}", parts=parts)
