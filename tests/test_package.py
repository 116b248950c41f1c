"""What is built of the repository installs elsewhere, and works there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import torchrl_mage

ROOT = Path(__file__).parents[1]
SHIPPED = "torchrl_mage", "examples", "tests", "docs"
FILES = (
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "mkdocs.yml",
)


def python(*arguments, interpreter=sys.executable, cwd):
    """Runs Python away from this repository; returns what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(part) for part in (interpreter, *arguments)]
    out = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    return out.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, made of the source archive, and that archive, made of a copy of the sources."""
    folder = tmp_path_factory.mktemp("package")
    for name in SHIPPED:
        if (ROOT / name).exists():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    python("-m", "build", "--no-isolation", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return wheel, archive


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_of_this_is(built, tmp_path):
    """In an environment of its own, which borrows the dependencies from the running one."""
    wheel, _ = built
    venv.create(tmp_path / "env", with_pip=False)
    interpreter = tmp_path / "env/bin/python"
    offline = ("--quiet", "--no-deps", "--no-index")
    python("-m", "pip", "--python", interpreter, "install", *offline, wheel, cwd=tmp_path)
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    (snippet,) = re.findall(
        r"<!-- snippet: compose -->\n```python\n(.*?)^```$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    code = f"{snippet}\nimport torchrl_mage\nprint(torchrl_mage.__file__, optimizer.state != {{}})"
    said = python("-W", "ignore", "-c", code, interpreter=interpreter, cwd=tmp_path)
    assert said.split() == [str(packages / "torchrl_mage/__init__.py"), "True"]


def test_the_wheel_is_the_package_alone(built):
    wheel, _ = built
    with ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        (metadata,) = (name for name in file.namelist() if name.endswith("METADATA"))
        fields = Parser().parsestr(file.read(metadata).decode())
    sources = [
        path for path in (ROOT / "torchrl_mage").rglob("*") if path.suffix in (".py", ".pyi")
    ]
    sources.append(ROOT / "torchrl_mage/py.typed")
    assert set(names) == {str(path.relative_to(ROOT)) for path in sources}
    assert fields["Version"] == torchrl_mage.__version__
    assert fields["License-Expression"] == "MIT"


def test_the_source_archive_has_the_scripts_with_their_settings(built):
    """And the tests, the documentation and all that its README links to."""
    _, archive = built
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for folder in ("examples", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".yaml", ".md", ".csv", ".png"):
                assert str(path.relative_to(ROOT)) in names
    assert {*FILES, "docs/pages.py"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_one_citation():
    """CITATION.cff names the paper as the README does."""
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    entry = dict(
        re.findall(r"^  (\w+) += \{(.*)\}", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    names = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
    assert paper["title"] == entry["title"]
    assert " and ".join(names) == entry["author"]
    assert paper["collection-title"] == entry["booktitle"]
    assert str(paper["year"]) == entry["year"]
