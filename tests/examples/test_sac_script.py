"""MAGE-SAC, run for seconds."""

from __future__ import annotations

import math

import pytest
import torch
from examples.test_mage_td3 import TINY
from examples.test_resume import outcome

TINY = [override for override in TINY if not override.startswith("loss.")]


def test_a_run_repeats_and_learns_its_temperature(tmp_path, launch):
    outcomes = []
    for name in ("a", "b"):
        launch("mage_sac", f"hydra.run.dir={tmp_path / name}", *TINY, cwd=tmp_path)
        outcomes.append(outcome(tmp_path / name))
    assert outcomes[0][:2] == outcomes[1][:2]
    torch.testing.assert_close(outcomes[0][2], outcomes[1][2], rtol=0, atol=0)
    last = outcomes[0][0][-1]
    numbers = {name: float(value) for name, value in last.items() if value != ""}
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["entropy"] > -1, "a fresh policy is wider than the target entropy"
    assert 0.99 < numbers["alpha"] < 1, "18 steps of 3e-4 at most"


def test_fixed_temperature_stays(tmp_path, launch):
    path = tmp_path / "run"
    fixed = ["loss.fixed_alpha=true", "loss.alpha_init=0.3"]
    launch("mage_sac", f"hydra.run.dir={path}", *TINY, *fixed, cwd=tmp_path)
    assert abs(float(outcome(path)[0][-1]["alpha"]) - 0.3) < 1e-6


@pytest.mark.parametrize("task", ["InvertedPendulum-v5", "Pendulum-v1"])
def test_reward_and_termination_may_be_learned(tmp_path, launch, task):
    path = tmp_path / "run"
    learned = ["reward=learned", "termination=learned", "reward_model.num_cells=[8]"]
    custom = ["env=custom", f"env.name={task}", *learned]
    launch("mage_sac", f"hydra.run.dir={path}", *TINY, *custom, cwd=tmp_path)
    last = outcome(path)[0][-1]
    assert float(last["loss_reward"]) > 0
    assert float(last["loss_termination"]) > 0


def test_imagined_states_and_the_targets_paths(tmp_path, launch):
    path = tmp_path / "run"
    launch("mage_sac", f"hydra.run.dir={path}", *TINY, "policy.imagination_steps=3", cwd=tmp_path)
    last = outcome(path)[0][-1]
    assert all(float(last[name]) > 0 for name in ("reward_path", "next_state_path"))


def test_real_transitions_beside_the_imagined(tmp_path, launch):
    """Their TD error is reported, and trains other critics; at 0 nothing is drawn for it."""
    ends = []
    for weight in (0, 1):
        path = tmp_path / str(weight)
        in_range = ["critic.units=range", "loss.alpha_init=1e-3", "greedy_every=2"]
        settings = [f"critic.real_coeff={weight}", *in_range]
        launch("mage_sac", f"hydra.run.dir={path}", *TINY, *settings, cwd=tmp_path)
        ends.append(outcome(path)[0][-1])
    assert "real_td_error" not in ends[0]
    assert float(ends[1]["real_td_error"]) > 0
    assert ends[0]["loss_qvalue"] != ends[1]["loss_qvalue"]


def test_bounds_without_the_range_that_has_them_are_named(tmp_path, launch, capfd):
    path = f"hydra.run.dir={tmp_path / 'run'}"
    with pytest.raises(SystemExit):
        launch("mage_sac", path, *TINY, "critic.bounded=true", "critic.units=reward", cwd=tmp_path)
    named = "critic.units = 'reward': must be one of range, where critic.bounded is true"
    assert named in capfd.readouterr().err


@pytest.mark.parametrize("script", ["mage_ddpg", "gradient_error"])
def test_other_scripts_have_pendulums_dynamics_alone(tmp_path, launch, capfd, script):
    with pytest.raises(SystemExit):
        launch(script, f"hydra.run.dir={tmp_path / 'run'}", "env=hopper", cwd=tmp_path)
    assert "env.name = 'Hopper-v5': this script needs differentiable" in capfd.readouterr().err
