"""A second process that is started on a run in use changes no byte of its folder."""

from __future__ import annotations

import hashlib
import signal
import time

from examples.test_mage_td3 import TINY
from examples.test_resume import outcome, start, wait_for_a_checkpoint


def digests(folder):
    """All that is in there but the lock, which is a file of no bytes."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_second_is_refused_and_the_first_ends_as_if_alone(tmp_path):
    settings = [*TINY, "total_steps=200", "checkpoint_interval=20"]
    path = tmp_path / "run"
    first = start(f"hydra.run.dir={path}", *settings, cwd=tmp_path)
    wait_for_a_checkpoint(path, first)
    while len(list(path.glob("checkpoints/step_*"))) < 2 or not (path / "metrics.csv").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    try:
        before = digests(path)
        second = start(f"resume={path}", cwd=tmp_path)
        said, _ = second.communicate(timeout=120)
        assert second.returncode != 0
        assert f"another process trains in {path}: wait for it" in said
        assert digests(path) == before
    finally:
        first.send_signal(signal.SIGCONT)
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 0, said
    assert [row["step"] for row in outcome(path)[0]][-1] == "200"
