"""Eq. 14 along a run: a row every ten steps, the actor as it was drawn."""

from __future__ import annotations

import re

import pytest
from examples.test_resume import outcome

TINY = [
    "compile=false",
    "total_steps=60",
    "warmup_steps=20",
    "horizon=20",
    "trajectories=3",
    "world_model.num_cells=[8]",
    "world_model.fit_batches=2",
    "policy.updates_per_step=2",
    "policy.batch_size=8",
    "actor.num_cells=[8]",
    "critic.num_cells=[8]",
]


def test_a_row_every_ten_steps(tmp_path, launch):
    outcomes = []
    for name, coeff in (("mage", 1), ("dyna", 0)):
        path = tmp_path / name
        coeff = f"loss.gradient_coeff={coeff}"
        launch("gradient_error", f"hydra.run.dir={path}", *TINY, coeff, cwd=tmp_path)
        outcomes.append(outcome(path))
    mage, dyna = outcomes
    assert [row["step"] for row in mage[0]] == [str(step) for step in range(10, 61, 10)]
    errors = [[float(row["gradient_error"]) for row in rows] for rows, _, _ in outcomes]
    assert all(error > 0 for curve in errors for error in curve)
    assert errors[0][0] == errors[1][0], "the same actor and critics, not yet trained"
    assert errors[0][-1] != errors[1][-1]
    for key, value in mage[2]["actor"].items():
        assert value.equal(dyna[2]["actor"][key]), "the actor is not trained"
    seen = mage[2]["normalizer"]["statistics.count"].item()
    assert seen == 20, "after the warm-up the actor's input is normalised as it was"


@pytest.mark.parametrize(
    "override", ["video=true", "data=a.csv", "on_divergence=reset_agent", "env=cartpole"]
)
def test_what_a_fixed_actor_cannot_have_is_refused(tmp_path, launch, capfd, override):
    with pytest.raises(SystemExit):
        launch("gradient_error", override, cwd=tmp_path)
    assert re.search(r"SettingsError: .* leave (env|them) out", capfd.readouterr().err, re.DOTALL)
