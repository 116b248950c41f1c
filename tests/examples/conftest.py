"""How the tests start the scripts."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def launch(monkeypatch, capfd):
    """Runs a script in this process, which imports everything once; returns what it printed."""

    def call(script, *arguments, cwd):
        monkeypatch.chdir(cwd)
        path = str(EXAMPLES / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")
        return capfd.readouterr()

    return call
