"""The documentation's pages: the repository's own, and one of every room of the package."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "examples/**/*.md")
LINKED = (
    "examples/**/*.png",
    "examples/**/*.csv",
    "examples/**/*.yaml",
    "torchrl_mage/functional.py",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs' hook: files keep their place in the repository, so that their links hold."""
    for path in (path for pattern in (*PAGES, *LINKED) for path in sorted(ROOT.glob(pattern))):
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for path in sorted((ROOT / "torchrl_mage").iterdir()):
        room = path.stem
        if not room.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists()):
            content = f"# torchrl_mage.{room}\n\n::: torchrl_mage.{room}\n"
            files.append(File.generated(config, f"reference/{room}.md", content=content))
    return files
