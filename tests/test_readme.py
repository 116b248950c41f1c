"""What the README and its pages tell their reader to type works, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *(ROOT / "examples" / name for name in ("README.md", "gallery.md", "results/README.md")),
]


def blocks(language, pages=PAGES):
    return [
        code
        for page in pages
        for code in re.findall(
            rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        )
    ]


@pytest.mark.parametrize("code", blocks("python"))
def test_snippets_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_snippets():
    assert len(blocks("python")) == 13
    assert len(blocks("bash", [README])) == 3


def test_a_newcomer_reads_one_screen():
    assert README.read_text().count("\n") <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_override_of_the_tables_exists():
    import command_line  # registers the resolvers

    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    assert command_line.CONFIG.exists()
    text = "".join(page.read_text() for page in PAGES)
    table = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    commands = [
        [word for word in code.split() if "=" in word and not word.startswith("resume")]
        for cell in table
        for code in re.findall(r"`([^`]*)`", cell)
    ]
    assert sum(map(len, commands)) >= 15
    with initialize_config_dir(str(command_line.CONFIG), version_base="1.3"):
        for overrides in commands:
            if not {",", "NAME", "hydra"} & set(re.split("([,/.=])", " ".join(overrides))):
                OmegaConf.to_container(compose("mage_td3", overrides=overrides), resolve=True)
