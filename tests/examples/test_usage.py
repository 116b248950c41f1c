"""``--help`` fits a screen and says what is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from command_line import CONFIG

import pytest
import yaml
from examples.conftest import EXAMPLES

SCRIPTS = ("mage_td3", "mage_sac", "td3", "sac", "mage_ddpg", "gradient_error")


@pytest.fixture
def usage(launch, tmp_path, capfd):
    def call(script, *overrides):
        with pytest.raises(SystemExit) as end:
            launch(script, "--help", *overrides, cwd=tmp_path)
        assert end.value.code == 0
        return capfd.readouterr().out

    return call


def shown(text):
    """The settings in it."""
    return dict(re.findall(r"^  ([\w.]+)=(\S+) ", text, re.MULTILINE))


def test_help_fits_a_screen_and_leaves_out_what_a_script_has_not(usage, tmp_path):
    texts = {script: usage(script) for script in SCRIPTS}
    for script, text in texts.items():
        lines = text.splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 100
        assert f"python examples/{script}.py KEY=VALUE" in text
    assert not list(tmp_path.iterdir()), "nothing is begun"
    groups = yaml.safe_load((CONFIG / "help.yaml").read_text()).values()
    every = {key for group in groups for key in group}
    assert set(shown(texts["mage_td3"])) == every, "a setting that is gone would be shown nowhere"
    assert every - set(shown(texts["td3"])) == {
        "recipe",
        "reward",
        "loss.gradient_coeff",
        "loss.lmbda",
        "loss.horizon",
        "world_model.ensemble_size",
    }


def test_it_shows_the_values_that_the_overrides_give(usage):
    settings = ("env=cartpole", "recipe=paper", "seed=1", "loss.gradient_coeff=0")
    found = shown(usage("mage_td3", *settings))
    assert found["env"] == "cartpole"
    assert (found["total_steps"], found["seed"], found["threads"]) == ("5000", "1", "null")
    assert (found["loss.gradient_coeff"], found["compile"]) == ("0", "true")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["td3", "--help"], 0, "python examples/td3.py KEY=VALUE"),
        (["td3", "+experiment=returns", "--cfg", "job"], 0, "critic"),
        (["mage_td3", "env=cartpol"], 1, "Could not find 'env/cartpol'"),
        (["mage_sac", "loss.lambda=1"], 1, "Key 'lambda' is not in struct"),
        (["mage_td3", "loss.lmbda=-1"], 1, "loss.lmbda = -1: must be a number, at least 0"),
        (["mage_td3", "env=dmc"], 1, "env.name is missing"),
    ],
)
def test_what_can_be_answered_before_torch_is(arguments, status, said, tmp_path):
    script, *arguments = arguments
    command = [sys.executable, "-X", "importtime", str(EXAMPLES / f"{script}.py"), *arguments]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == status
    assert said in out.stdout + out.stderr
    assert not re.search(r"\| +torch$", out.stderr, re.MULTILINE)
    assert not list(tmp_path.iterdir()), "nothing is begun"


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=1", "resume=auto"],
        ["data=${hydra:runtime.cwd}/log.csv"],  # only Hydra knows
        ["total_steps=${env.total_stepz}"],  # wrong, as the run will say
        ["+experiment=returns", "seed=0,1"],
        ["hydra.mode=MULTIRUN", "env=custom", "env.name=A,B"],
        ["-m", "loss.lmbda=0,1"],
    ],
)
def test_all_else_is_left_to_the_run(arguments, tmp_path):
    """The script goes on to import torch, here one that ends it."""
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    command = [sys.executable, str(EXAMPLES / "mage_td3.py"), *arguments]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert out.returncode == 3
    assert [file.name for file in tmp_path.iterdir() if file.suffix] == ["torch.py"]
