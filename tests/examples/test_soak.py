"""Long runs: memory and file handles stay flat, and memory near what the run must hold."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from benchmarks.problem import SIZES

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = [
    "world_model.num_cells=[8]",
    "world_model.ensemble_size=2",
    "world_model.batch_size=32",
    "policy.batch_size=16",
    "actor.num_cells=[8]",
    "critic.num_cells=[8]",
]
FEW_UPDATES = [
    "policy.updates_per_step=1",
    "world_model.exact_fit_batches=true",
    "eval_episodes=1",
    "checkpoint_interval=500",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture
def watch(tmp_path):
    """Runs the trainer; returns (evaluations so far, bytes resident, open files) over time."""

    def call(name, *overrides):
        path = tmp_path / name
        command = [sys.executable, str(EXAMPLES / "mage_td3.py"), f"hydra.run.dir={path}"]
        log = tmp_path / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, *FEW_UPDATES, *overrides],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
            )
        proc, page = Path(f"/proc/{process.pid}"), os.sysconf("SC_PAGE_SIZE")
        table = path / "metrics.csv"
        seen = []
        while process.poll() is None:
            rows = len(table.read_text().splitlines()) if table.exists() else 0
            try:
                resident = int((proc / "statm").read_text().split()[1]) * page
                seen.append((rows, resident, len(list((proc / "fd").iterdir()))))
            except (FileNotFoundError, IndexError):
                break  # it ended in between
            time.sleep(0.1)
        assert process.wait() == 0, log.read_text()[-2000:]
        return seen

    return call


def test_ten_thousand_steps_leak_neither_memory_nor_file_handles(watch, record_property):
    seen = watch(
        "tiny",
        *TINY,
        "compile=false",
        "total_steps=10000",
        "warmup_steps=100",
        "eval_interval=1000",
        "world_model.fit_interval=50",
        "world_model.fit_batches=2",
    )
    after_warm_up = [(resident, files) for rows, resident, files in seen if rows >= 3]
    assert len(after_warm_up) >= 20
    tenth = len(after_warm_up) // 10
    first, last = after_warm_up[:tenth], after_warm_up[-tenth:]
    growth = max(r for r, _ in last) / max(r for r, _ in first) - 1
    record_property("memory growth", growth)
    assert growth <= 0.02, f"memory grew by {growth:.1%}"
    assert max(f for _, f in last) <= max(f for _, f in first)


# Peak of a compiled critic update, the largest, at HalfCheetah's sizes (torch.profiler).
ACTIVATIONS = 42e6


def held_bytes(size, steps):
    """What HalfCheetah's trainer must hold: parameters, gradients, RAdam's two moments, targets,
    the buffer and the activations of one update.
    """

    def parameters(*widths):
        return sum((a + 1) * b for a, b in itertools.pairwise(widths))

    inputs = size.obs + size.action
    agent = parameters(size.obs, *size.actor, size.action) + 2 * parameters(inputs, *size.critic, 1)
    trained = agent + size.members * parameters(inputs, *size.model, 2 * size.obs)
    buffer = steps * (2 * size.obs + size.action + 2)
    return 4 * (4 * trained + agent + buffer) + ACTIVATIONS


def test_halfcheetah_holds_little_more_than_it_must(watch, record_property):
    """Over what a run with tiny networks takes: the interpreter, the libraries, the compiler."""
    lengths = ["env=halfcheetah", "total_steps=2500", "warmup_steps=100", "eval_interval=500"]
    few = ["world_model.fit_batches=5"]
    base = watch("tiny", *TINY, *lengths, *few)
    full = watch("full", *lengths, *few)

    def resident(seen):
        return [memory for rows, memory, _ in seen if rows >= 2]

    after_warm_up = resident(full)
    tenth = len(after_warm_up) // 10
    growth = median(after_warm_up[-tenth:]) / median(after_warm_up[:tenth]) - 1
    taken = max(after_warm_up) - median(resident(base))
    must = held_bytes(SIZES["halfcheetah"], 2500)
    record_property("memory growth", growth)
    record_property("taken over held", taken / must)
    assert growth <= 0.02, f"memory grew by {growth:.1%}"
    assert taken <= 1.5 * must, f"{taken / 1e6:.0f} MB for {must / 1e6:.0f} MB"
