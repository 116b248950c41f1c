"""``--help`` fits a screen and says what is so."""

from __future__ import annotations

import re

from run import CONFIG

import pytest
import yaml

SCRIPTS = ("mage_td3", "mage_sac", "td3", "mage_ddpg", "gradient_error")


@pytest.fixture
def usage(launch, tmp_path, capfd):
    def call(script, *overrides):
        with pytest.raises(SystemExit) as end:
            launch(script, "--help", *overrides, cwd=tmp_path)
        assert end.value.code == 0
        return capfd.readouterr().out

    return call


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_a_screen(usage, script, tmp_path):
    lines = usage(script).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert f"python examples/{script}.py KEY=VALUE" in "\n".join(lines)
    assert not list(tmp_path.iterdir()), "nothing is begun"


def test_it_shows_the_values_that_the_overrides_give(usage):
    out = usage("mage_td3", "env=cartpole", "recipe=paper", "seed=1", "loss.gradient_coeff=0")
    shown = dict(re.findall(r"^  ([\w.]+)=(\S+) ", out, re.MULTILINE))
    assert shown["env"] == "cartpole"
    assert (shown["total_steps"], shown["seed"], shown["threads"]) == ("5000", "1", "null")
    assert (shown["loss.gradient_coeff"], shown["compile"]) == ("0", "true")


def test_a_script_leaves_out_what_it_has_not(usage):
    shown = {script: set(re.findall(r"^  ([\w.]+)=", usage(script), re.M)) for script in SCRIPTS}
    texts = yaml.safe_load((CONFIG / "help.yaml").read_text())
    every = {key for group in texts.values() for key in group}
    assert shown["mage_td3"] == every, "a setting that is gone would be shown nowhere"
    assert every - shown["td3"] == {
        "recipe",
        "reward",
        "loss.gradient_coeff",
        "loss.lmbda",
        "loss.horizon",
        "world_model.ensemble_size",
    }
