"""A loss chosen by the settings: one of ours, or a class of the user's own."""

from __future__ import annotations

import sys

import pytest
from omegaconf import OmegaConf
from tables import rows
from test_mage_td3 import TINY
from test_mage_td3 import run as run  # the fixture

OWN = """
from torchrl_mage import MAGELoss, MAGESACLoss

class Cautious(MAGELoss):
    def __init__(self, actor, critics, model, caution=1.0, **others):
        super().__init__(actor, critics, model, **others)
        self.caution = caution

    def next_value(self, *arguments):
        return super().next_value(*arguments) - self.caution

class Soft(MAGESACLoss):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's on the path."""
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_losses", None)


def test_taylor_td_runs_and_says_what_it_has_no_use_for(tmp_path, run):
    printed = run(tmp_path / "run", "loss.kind=taylor", "+loss.arguments.action_variance=0.01")
    assert (
        "TaylorTDLoss takes no loss.action_noise, loss.gradient_coeff, loss.lmbda, "
        "loss.loss_function" in printed.out + printed.err
    )
    assert float(rows(tmp_path / "run")[-1]["action_gradient_error"]) > 0
    assert OmegaConf.load(tmp_path / "run/config.yaml").loss.arguments.action_variance == 0.01


def test_its_own_arguments_reach_it(tmp_path, run):
    """Without variances Taylor TD has no action-gradient to learn."""
    run(tmp_path / "run", "loss.kind=taylor", "+loss.arguments.action_variance=0")
    assert "action_gradient_error" not in rows(tmp_path / "run")[-1]


@pytest.mark.usefixtures("own")
def test_a_loss_of_the_users_own(tmp_path, run):
    """What it takes off the next value is missing from the first target, whose critics are at 0."""
    for caution in (0.0, 0.5):
        run(
            tmp_path / str(caution),
            "loss.kind=own_losses:Cautious",
            f"+loss.arguments.caution={caution}",
            "total_steps=15",
            "policy.updates_per_step=1",
            "loss.horizon=1",
        )
    targets = [float(rows(tmp_path / str(c))[-1]["target_value"]) for c in (0.0, 0.5)]
    assert targets[0] - targets[1] == pytest.approx(0.99 * 0.5, abs=1e-4)


@pytest.mark.usefixtures("own")
def test_a_stochastic_actors_loss_of_the_users_own(tmp_path, launch):
    arguments = [f"hydra.run.dir={tmp_path / 'run'}", *TINY, "loss.kind=own_losses:Soft"]
    launch("mage_sac", *arguments, cwd=tmp_path)
    assert "alpha" in rows(tmp_path / "run")[-1]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.kind=magi"], "loss.kind = 'magi': must be mage, taylor or module:Class."),
        (["loss.kind=no_such:Loss"], "No module named 'no_such'); install it, or put its folder"),
        (["loss.kind=own_losses:Lost"], "or module:Class, a subclass of MAGELoss."),
        (["loss.kind=.own:Loss"], "loss.kind = '.own:Loss': must be mage, taylor or module:Class."),
        (["loss.kind=torch.nn:Linear"], "or module:Class, a subclass of MAGELoss."),
        (
            ["loss.kind=taylor", "+loss.arguments.action_varance=1"],
            "loss.arguments.action_varance = 1: TaylorTDLoss takes no such argument; it takes "
            "action_variance, deactivate_vmap, ",
        ),
        (["+loss.arguments.lmbda=0.1"], "loss.arguments.lmbda = 0.1: set loss.lmbda=0.1."),
        (
            ["loss.kind=taylor", "+loss.arguments.state_variance=0.1"],
            "state_variance=0.1 needs one state entry",
        ),
    ],
)
def test_what_is_no_loss_is_named(tmp_path, run, overrides, message):
    assert message in run(tmp_path / "run", *overrides, refused=True).err
