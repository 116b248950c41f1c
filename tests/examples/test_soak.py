"""A long run of a tiny configuration: memory and file handles stay flat."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = [
    "compile=false",
    "total_steps=10000",
    "warmup_steps=100",
    "eval_interval=1000",
    "eval_episodes=1",
    "checkpoint_interval=500",
    "world_model.num_cells=[8]",
    "world_model.ensemble_size=2",
    "world_model.fit_interval=50",
    "world_model.fit_batches=2",
    "world_model.exact_fit_batches=true",
    "world_model.batch_size=32",
    "policy.updates_per_step=1",
    "policy.batch_size=16",
    "actor.num_cells=[8]",
    "critic.num_cells=[8]",
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_steps_leak_neither_memory_nor_file_handles(tmp_path, record_property):
    path = tmp_path / "run"
    command = [sys.executable, str(EXAMPLES / "mage_td3.py"), f"hydra.run.dir={path}", *TINY]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    proc, page = Path(f"/proc/{process.pid}"), os.sysconf("SC_PAGE_SIZE")
    seen = []  # evaluations so far, bytes resident, open files
    while process.poll() is None:
        table = path / "metrics.csv"
        rows = len(table.read_text().splitlines()) if table.exists() else 0
        try:
            resident = int((proc / "statm").read_text().split()[1]) * page
            seen.append((rows, resident, len(list((proc / "fd").iterdir()))))
        except (FileNotFoundError, IndexError):
            break  # it ended in between
        time.sleep(0.5)
    assert process.wait() == 0, (tmp_path / "log").read_text()[-2000:]
    after_warm_up = [(resident, files) for rows, resident, files in seen if rows >= 3]
    assert len(after_warm_up) >= 20
    tenth = len(after_warm_up) // 10
    first, last = after_warm_up[:tenth], after_warm_up[-tenth:]
    growth = max(r for r, _ in last) / max(r for r, _ in first) - 1
    record_property("memory growth", growth)
    assert growth <= 0.02, f"memory grew by {growth:.1%}"
    assert max(f for _, f in last) <= max(f for _, f in first)
