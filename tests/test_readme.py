"""What the README tells its reader to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_snippets_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_snippets():
    assert len(blocks("python")) == 8
    assert len(blocks("bash")) == 3


def test_every_override_of_the_table_exists():
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from torchrl_mage.trainers import chosen_folder

    OmegaConf.register_new_resolver("run_folder", chosen_folder, replace=True)
    table = re.findall(r"^\| (`.*?`) \|", README.read_text(), re.MULTILINE)
    commands = [
        [word for word in code.split() if "=" in word and not word.startswith("resume")]
        for cell in table
        for code in re.findall(r"`([^`]*)`", cell)
    ]
    assert sum(map(len, commands)) >= 10
    with initialize_config_dir(str(README.parent / "examples" / "config"), version_base="1.3"):
        for overrides in commands:
            if not {",", "NAME", "hydra"} & set(re.split("([,/.=])", " ".join(overrides))):
                OmegaConf.to_container(compose("mage_td3", overrides=overrides), resolve=True)
