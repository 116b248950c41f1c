"""How many threads a run takes by itself."""

from __future__ import annotations

import os

import pytest
import torch

from torchrl_mage.trainers.hardware import set_up_torch, usable_cores


@pytest.fixture
def _threads_kept():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("share", "cores"),
    [("max 100000", 8), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)],
)
def test_a_containers_share_limits_the_cores(tmp_path, monkeypatch, share, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    quota.write_text(share + "\n")
    assert usable_cores(quota) == cores


def test_without_a_share_the_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert usable_cores(tmp_path / "cpu.max") == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity to set")
@pytest.mark.usefixtures("_threads_kept")
def test_a_run_takes_the_cores_that_it_may_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        set_up_torch("cpu", seed=0)
        assert torch.get_num_threads() == 1
        set_up_torch("cpu", seed=0, threads=3)
        assert torch.get_num_threads() == 3, "what the user says counts"
        monkeypatch.setenv("OMP_NUM_THREADS", "3")  # PyTorch has read it when it was loaded
        set_up_torch("cpu", seed=0)
        assert torch.get_num_threads() == 3
    finally:
        os.sched_setaffinity(0, before)
