"""Imports go one way, and a base install can import every module that it ships."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "torchrl_mage"
ALLOWED = {  # of the package's own rooms, by room
    "functional.py": set(),
    "modules": {"functional", "modules"},
    "envs": {"modules", "envs"},
    "objectives": {"functional", "modules", "diagnostics", "objectives"},
    "trainers": {"trainers"},
    "diagnostics.py": {"functional", "modules"},
    "loading.py": {"envs", "modules"},
}
EXTRAS = "hydra omegaconf matplotlib jsonschema pandas imageio shimmy dm_control wandb rliable"


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    path = PACKAGE / room
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for module in imported(file):
            assert module.split(".")[0] not in ("hydra", "omegaconf"), file
            if module.startswith("torchrl_mage."):
                assert module.split(".")[1] in ALLOWED[room], f"{file} imports {module}"


def test_every_room_is_spoken_of():
    rooms = {p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__.py"} == set(ALLOWED)


def test_the_package_is_imported_without_torch_and_registers_its_environment():
    code = """
import gymnasium, sys, torchrl_mage
assert "torch" not in sys.modules
assert torchrl_mage.__version__
gymnasium.make("torchrl_mage/ContinuousCartPole-v1").reset(seed=0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("package", ["torchrl_mage", "torchrl_mage.trainers"])
def test_a_stub_names_what_there_is(package):
    module = importlib.import_module(package)
    stub = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text())
    (names,) = (n.value for n in stub.body if isinstance(n, ast.Assign))
    assert sorted(ast.literal_eval(names)) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_a_base_install_imports_every_module():
    """In a process where the extras cannot be imported."""
    code = f"""
import importlib, pkgutil, sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.split(".")[0] in {EXTRAS.split()!r}
        return None if absent else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import torchrl_mage
names = [m.name for m in pkgutil.walk_packages(torchrl_mage.__path__, "torchrl_mage.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) >= 40
