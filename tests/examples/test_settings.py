"""Random overrides: a run of a few steps works, or every wrong one is named before it starts."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import runpy
import sys
import tempfile
from pathlib import Path
from unittest import mock

import run  # noqa: F401  registers the config's resolvers

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from torchrl_mage.trainers import DivergenceError, SettingsError

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {
    "compile": False,
    "total_steps": 12,
    "warmup_steps": 6,
    "eval_interval": 6,
    "eval_episodes": 1,
    "world_model.num_cells": [8],
    "world_model.ensemble_size": 2,
    "world_model.fit_interval": 4,
    "world_model.fit_batches": 2,
    "world_model.batch_size": 4,
    "policy.updates_per_step": 2,
    "policy.batch_size": 5,
    "actor.num_cells": [8],
    "critic.num_cells": [8],
}
# For each key: values that must work, values that must be refused.
counts = ([1, 2, 3, 7], [0, -1, 1.5, "x", "null", True])
nonnegative = ([0, 1e-30, 0.3, 1, 50], [-1e-9, -3, "nan", "inf", "x", "null"])
positive = ([1e-12, 1e-4, 0.01], [0, -1e-4, "nan", "inf", "x", "null"])
widths = ([[1], [3, 5], [4, 4, 4]], [[], [0], [8, -1], [2.5], 8, "x"])
booleans = ([True, False], [2, "maybe", "null"])
POOLS = {
    "env": (["pendulum", "cartpole"], []),
    "seed": ([0, 1, 4294967295], [-1, 0.5, 4294967296, "null"]),
    "threads": ([1, 2], [0, -1, 1.5, "x"]),
    "data": (["null"], [3]),
    "total_steps": ([1, 5, 13], [0, -1, 1e3, "x"]),
    "offline_steps": ([0], [-1, 3, 0.5, "x"]),
    "warmup_steps": ([0, 1, 5, 12, 40], [-1, 0.5, "null"]),
    "eval_interval": counts,
    "eval_episodes": ([1, 2], [0, -1, "x"]),
    "discount": ([0, 0.5, 0.999], [1, 1.5, -0.1, "nan"]),
    "exploration_noise": nonnegative,
    "greedy_every": ([2, 5, "null"], [1, 0, 2.5, "x"]),
    "world_model.ensemble_size": counts,
    "world_model.num_cells": widths,
    "world_model.fit_interval": counts,
    "world_model.fit_batches": counts,
    "world_model.exact_fit_batches": booleans,
    "world_model.batch_size": counts,
    "world_model.lr": positive,
    "world_model.weight_decay": nonnegative,
    "world_model.grad_clip": positive,
    "reward": (["known", "learned"], ["none", 1]),
    "termination": (["known", "learned"], ["none", 1]),
    "reward_model.num_cells": widths,
    "reward_model.lr": positive,
    "reward_model.weight_decay": nonnegative,
    "reward_model.grad_clip": positive,
    "policy.updates_per_step": counts,
    "policy.batch_size": counts,
    "policy.actor_delay": counts,
    "policy.imagination_steps": ([0, 1, 4], [-1, 0.5, "x", "null"]),
    "matmul_precision": (["highest", "high", "medium"], ["exact", 32, "null"]),
    "precision": (["float32", "bf16", "auto"], ["fp16", 16, "null"]),
    "policy.tau": ([1e-6, 0.1, 0.5], [0, 0.51, -1, "inf"]),
    "loss.lmbda": nonnegative,
    "loss.gradient_coeff": nonnegative,
    "loss.policy_noise": nonnegative,
    "loss.noise_clip": nonnegative,
    "loss.loss_function": (["smooth_l1", "l2", "l1"], ["huber", 1, "null"]),
    "actor.num_cells": widths,
    "actor.lr": positive,
    "actor.grad_clip": positive,
    "critic.num_cells": widths,
    "critic.lr": positive,
    "critic.real_coeff": nonnegative,
    "critic.grad_clip": ([0.1, 10, "null"], [0, -1, "x"]),
    "logger": (["csv"], ["print", 3]),
    "checkpoint_interval": counts,
    "on_divergence": (["stop", "reset_agent"], ["ignore", 0]),
    "video": ([False], ["yes please", 2]),
    "log_interval": counts,
}


@st.composite
def overrides(draw):
    """Some keys with a value each, and those among them that are wrong."""
    chosen, wrong = {}, set()
    for key in draw(st.lists(st.sampled_from(sorted(POOLS)), unique=True, max_size=8)):
        good, bad = POOLS[key]
        if bad and draw(st.integers(0, 7)) == 0:
            chosen[key] = draw(st.sampled_from(bad))
            wrong.add(key)
        else:
            chosen[key] = draw(st.sampled_from(good))
    return chosen, wrong


def launch(path, chosen):
    """Runs the script in this process; hydra shows its errors whole."""
    arguments = [f"{key}={value}".replace(" ", "") for key, value in {**TINY, **chosen}.items()]
    argv = [str(EXAMPLES / "mage_td3.py"), f"hydra.run.dir={path}", *arguments]
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="1"),
        quiet[0],
        quiet[1],
    ):
        runpy.run_path(argv[0], run_name="__main__")


def check(case):
    chosen, wrong = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        if wrong:
            with pytest.raises(SettingsError) as error:
                launch(path, chosen)
            named = {line.split(" = ")[0].strip() for line in str(error.value).splitlines()[1:]}
            assert named == wrong
            assert not (path / "metrics.csv").exists(), "refused before anything ran"
            return
        with contextlib.suppress(DivergenceError):  # a wild one may diverge, and says so
            launch(path, chosen)
        if list(path.glob("diverged_step_*")) and chosen.get("on_divergence") != "reset_agent":
            return
        with (path / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows[-1]["step"] == str({**TINY, **chosen}["total_steps"])
        values = [float(value) for row in rows for value in row.values() if value]
        assert torch.tensor(values).isfinite().all()


@given(overrides())
@example(({"total_steps": 1, "warmup_steps": 0, "policy.batch_size": 1}, set()))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_random_overrides_work_or_are_named(case):
    check(case)


@pytest.mark.slow
@given(overrides())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_random_overrides_work_or_are_named(case):
    check(case)


def test_every_setting_has_a_range():
    """So that a new key of the config cannot go unchecked."""
    ranges = yaml.safe_load((EXAMPLES / "config" / "ranges.yaml").read_text())

    def keys(schema):
        for key, below in schema["properties"].items():
            yield from [f"{key}.{k}" for k in keys(below)] if "properties" in below else [key]

    def leaves(config):
        for key, below in config.items():
            yield from [f"{key}.{k}" for k in leaves(below)] if isinstance(below, dict) else [key]

    for script in ("mage_td3", "mage_sac", "td3", "mage_ddpg", "gradient_error"):
        with initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
            config = OmegaConf.to_container(compose(script))
        del config["env"]
        assert set(leaves(config)) <= set(keys(ranges))


def test_a_task_brings_the_papers_sizes():
    """Appendix D.2."""

    def composed(env):
        with initialize_config_dir(str(EXAMPLES / "config"), version_base="1.3"):
            return OmegaConf.to_container(
                compose("mage_td3", [f"env={env}", "recipe=paper"]), resolve=True
            )

    for env, steps in (("pendulum", 2500), ("cartpole", 5000)):
        config = composed(env)
        assert (config["total_steps"], config["warmup_steps"]) == (steps, 100)
        assert (config["eval_interval"], config["policy"]["batch_size"]) == (250, 512)
        assert config["world_model"]["num_cells"] == config["actor"]["num_cells"] == [128, 128]
        assert config["critic"]["num_cells"] == [384, 384]
    for env in ("halfcheetah", "hopper", "walker2d", "swimmer", "pusher"):
        config = composed(env)
        assert (config["warmup_steps"], config["eval_interval"]) == (1000, 1000)
        assert config["policy"]["batch_size"] == 1024
        assert config["world_model"]["num_cells"] == [512] * 4
        assert config["actor"]["num_cells"] == config["critic"]["num_cells"] == [384, 384]
