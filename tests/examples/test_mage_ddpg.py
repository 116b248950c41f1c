"""MAGE-DDPG in the true dynamics, run for seconds, and its experiment."""

from __future__ import annotations

import torch
from examples.test_resume import outcome

TINY = [
    "compile=false",
    "total_steps=60",
    "warmup_steps=20",
    "eval_interval=30",
    "eval_episodes=1",
    "policy.batch_size=8",
    "actor.num_cells=[8]",
    "critic.num_cells=[8]",
]


def test_a_run_repeats(tmp_path, launch):
    outcomes = []
    for name in ("a", "b"):
        launch("mage_ddpg", f"hydra.run.dir={tmp_path / name}", *TINY, cwd=tmp_path)
        outcomes.append(outcome(tmp_path / name))
    assert outcomes[0][:2] == outcomes[1][:2]
    torch.testing.assert_close(outcomes[0][2], outcomes[1][2], rtol=0, atol=0)
    last = outcomes[0][0][-1]
    assert float(last["action_gradient"]) > 0
    critic = outcomes[0][2]["critic"]
    assert {tensor.shape[0] for key, tensor in critic.items() if "weight" in key} == {1}


def test_collapse_sweeps_both_versions_and_trains_nothing_twice(tmp_path, launch):
    """The sweep of Figure 5, cut short: a run for each lambda."""
    command = ["mage_ddpg", "-m", "+experiment=collapse", "seed=0", *TINY]
    result = launch(*command, cwd=tmp_path)
    assert result.out.count("final evaluation return: ") == 2
    tables = sorted((tmp_path / "runs" / "collapse").rglob("metrics.csv"))
    assert len(tables) == 2
    drawn = (tmp_path / "runs/collapse/mage_ddpg/learning_curves.csv").read_text()
    assert {"action_gradient", "eval_return_mean"} < {row.split(",")[0] for row in drawn.split()}

    def written():
        return [file.stat().st_mtime_ns for file in tables[0].parent.glob("checkpoints/*")]

    before = written()
    again = launch(*command, cwd=tmp_path)
    assert again.out.count("resumed") == again.out.count("final evaluation return: ") == 2
    assert written() == before
