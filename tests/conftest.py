"""Settings that every test shares."""

from __future__ import annotations

import pytest
import torch

from torchrl_mage.envs import tasks


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _tasks_of_a_test_are_its_own(monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
