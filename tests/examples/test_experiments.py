"""The paper's experiments by name: each composes, and each run of its sweep has valid settings."""

from __future__ import annotations

import itertools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from examples.test_mage_td3 import TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from torchrl_mage.trainers import check_settings

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = {  # as the paper has them: tasks, settings, seeds
    ("mage_td3", "returns"): 7 * 2 * 5,
    ("td3", "returns"): 7 * 5,
    ("mage_td3", "reward"): 7 * 2 * 2 * 5,
    ("mage_td3", "lmbda"): (4 + 1) * 5,
    ("mage_td3", "capacity"): 3 * 2 * 5,
    ("mage_td3", "asymptotic"): 2 * 5,
    ("td3", "asymptotic"): 10,
    ("mage_ddpg", "collapse"): 2 * 5,
    ("gradient_error", "gradients"): 2 * 5,
}


def composed(script, *overrides):
    runpy.run_path(str(EXAMPLES / f"{script}.py"))  # its resolvers, and where its settings lie
    config = EXAMPLES / "config" / ("td3" if script == "td3" else "")
    with initialize_config_dir(str(config), version_base="1.3"):
        return compose(script, list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(("script", "experiment"), RUNS)
def test_every_run_of_a_sweep_has_valid_settings(script, experiment):
    name = f"+experiment={experiment}"
    params = composed(script, name).hydra.sweeper.params
    sweep = [
        [f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()
    ]
    runs = list(itertools.product(*sweep))
    assert len(runs) == RUNS[script, experiment]
    for overrides in [run for run in runs if "seed=0" in run]:
        config = composed(script, name, *overrides)
        OmegaConf.set_readonly(config, False)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        settings = OmegaConf.to_container(config, resolve=True)
        check_settings(settings, EXAMPLES / "config" / "ranges.yaml")
        assert settings["resume"] == "auto", "a rerun trains nothing twice"


def test_table_1_has_the_papers_lengths_and_lambda():
    """Appendix B.5 and D.2; Dyna's settings are MAGE's."""
    ours = composed("mage_td3", "+experiment=asymptotic")
    assert (ours.total_steps, ours.loss.lmbda, ours.env.id) == (3_000_000, 0.05, "HalfCheetah-v5")
    td3 = composed("td3", "+experiment=asymptotic")
    assert (td3.total_steps, td3.env.id) == (10_000_000, "HalfCheetah-v5")


def test_lambdas_sweep_has_dyna_beside_it():
    """Appendix B.4: at lambda 0.2, which only scales Dyna's loss."""
    values = composed("mage_td3", "+experiment=lmbda").hydra.sweeper.params["loss"]
    losses = [
        composed("mage_td3", "+experiment=lmbda", f"loss={x}").loss for x in values.split(",")
    ]
    found = [(loss.gradient_coeff, loss.lmbda) for loss in losses]
    assert found == [(1, 0.01), (1, 0.05), (1, 0.2), (1, 1), (0, 0.2)]


def test_capacity_is_the_papers():
    """Appendix B.3, and its scaled version for Pendulum."""
    for env, sizes in (
        ("pusher", [(8, [512] * 4), (2, [256] * 4), (1, [256] * 2)]),
        ("pendulum", [(8, [128] * 2), (2, [64] * 2), (1, [64])]),
    ):
        for capacity, size in zip(("full", "small", "smaller"), sizes, strict=True):
            overrides = ["+experiment=capacity", f"+capacity={capacity}", f"env={env}"]
            model = composed("mage_td3", *overrides).world_model
            assert (model.ensemble_size, list(model.num_cells)) == size


def test_a_sweep_runs_and_plots(tmp_path, launch):
    left_out = ("world_model", "log_interval", "actor", "critic")  # a folder's name has 255 letters
    tiny = [override for override in TINY if not override.startswith(left_out)]
    overrides = [
        *tiny,
        "env=pendulum",
        "seed=0",
        "loss.gradient_coeff=1",
        "world_model.fit_batches=1",
    ]
    launch("mage_td3", "-m", "+experiment=capacity", *overrides, cwd=tmp_path)
    table = (tmp_path / "runs/capacity/mage_td3/learning_curves.csv").read_text()
    assert (tmp_path / "runs/capacity/mage_td3/learning_curves.png").exists()
    assert {line.split(",")[1] for line in table.splitlines()[1:]} == {"Pendulum-v1"}
    for size in ("ensemble_size=8", "ensemble_size=2", "ensemble_size=1"):
        assert size in table


def test_a_sweep_is_continued(tmp_path, launch):
    """With the overrides it had, in its folder: what ended is not trained again."""
    command = ["td3", "-m", "seed=0,1", "compile=false", "total_steps=20", "warmup_steps=10"]
    command += ["eval_interval=20", "eval_episodes=1", "policy.batch_size=8"]
    launch(*command, cwd=tmp_path)
    (folder,) = tmp_path.glob("runs/td3/sweep_*")

    def saved():
        return {file: file.stat().st_mtime_ns for file in folder.glob("*/checkpoints/*/state.pt")}

    before = saved()
    assert len({file.parents[2] for file in before}) == 2
    again = launch(*command, "resume=auto", f"hydra.sweep.dir={folder}", cwd=tmp_path)
    assert again.out.count("resumed") == 2
    assert saved() == before


def sweep_with_one_bad_seed(tmp_path, *overrides):
    """Seeds 0 and 1 end, -1 and -2 fail and are both named."""
    script = [sys.executable, str(EXAMPLES / "mage_td3.py"), "-m", "threads=1", "seed=0,-1,-2,1"]
    script += ["hydra.sweep.subdir=${seed}", *overrides, *TINY]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    for seed in (-1, -2):
        assert re.search(
            rf"failed: .*seed={seed}.*: SettingsError: .*\n  seed = {seed}: must be an integer",
            result.stdout,
        )
    ended = {file.parent.name for file in tmp_path.glob("runs/mage_td3/sweep_*/*/networks.pt")}
    assert ended == {"0", "1"}
    return result.stdout + result.stderr


@pytest.mark.slow
def test_runs_side_by_side_and_one_that_fails(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep_with_one_bad_seed(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.fixture
def ray_cluster():
    """Two workers on this machine, as another machine's user would start them."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    start = ["ray", "start", "--head", "--num-cpus=2", "--port=6399", "--disable-usage-stats"]
    subprocess.run([*start, "--include-dashboard=false"], check=True, capture_output=True)
    yield
    subprocess.run(["ray", "stop"], check=True, capture_output=True)


@pytest.mark.slow
def test_a_ray_cluster_runs_a_sweep_and_one_that_fails(tmp_path, ray_cluster):
    said = sweep_with_one_bad_seed(tmp_path, "hydra/launcher=ray_cluster")
    assert len(set(re.findall(r"_run_job pid=(\d+)", said))) >= 2, "two workers"
