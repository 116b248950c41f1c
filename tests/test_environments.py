"""Environments as users write them: every stored transition is right, and a resumed run is the run.

Each is trained from its first step to its last, with a checkpoint on the way; from that checkpoint
it is resumed in a copy of the run's folder, with new objects. Either the resumed run is the
uninterrupted one, bit for bit, or it says why it may not be, and stores what the environment gave.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from environments import Kind, Log, Record, Transition, kinds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torchrl.data import LazyTensorStorage, ReplayBuffer
from world_model import LearnedWorldModel

from torchrl_mage import MAGELoss, NetworkSoftUpdate, Normalizer
from torchrl_mage.modules import critic, deterministic_actor
from torchrl_mage.trainers import Minimizer, Run, checkpoints, exploring, exploring_collector

TOTAL, WARMUP = 14, 4
FIT = {"lr": 1e-3, "weight_decay": 1e-4, "grad_clip": 5.0, "num_cells": [4]}
SETTINGS = OmegaConf.create(
    {
        "world_model": FIT
        | {
            "ensemble_size": 2,
            "fit_interval": 3,
            "batch_size": 4,
            "fit_batches": 2,
            "exact_fit_batches": True,
        },
        "reward_model": FIT,
        "reward": "learned",
        "termination": "learned",
        "critic": {"units": "range"},
        "discount": 0.9,
        "warmup_steps": WARMUP,
    }
)


@dataclass
class Trained:
    """What a run left behind."""

    path: Path
    data: TensorDictBase
    record: Record


def train(kind: Kind, path: Path, *, cut: int | None = None, copy: Path | None = None) -> Trained:
    """A tiny MAGE-TD3 in which all is learned; copies the folder as it is after step ``cut``."""
    torch.manual_seed(0)
    np.random.seed(0)
    run = Run(
        path,
        title="family",
        total_steps=TOTAL,
        log_interval=2,
        eval_interval=TOTAL,
        eval_episodes=1,
        checkpoint_interval=cut or TOTAL,
        seed=0,
        discount=0.9,
        scaled=True,
    )
    with run:
        env, eval_env = kind.task.make_env(), kind.task.make_env()
        obs_dim, action_dim = env.observation_spec["observation"].shape[-1], len(kind.bounds)
        normalizer = Normalizer(obs_dim)
        actor = deterministic_actor(obs_dim, env.action_spec, [4])
        critics = [critic(obs_dim, action_dim, [4], zero_head=True) for _ in range(2)]
        model = LearnedWorldModel(
            SETTINGS, kind.task, normalizer, action_dim, torch.device("cpu")
        ).held_by(run, lambda function, **_: function)
        loss = MAGELoss(actor, critics, model.module, action_spec=env.action_spec)
        loss.make_value_estimator(gamma=0.9)
        loss.check(normalizer(env.reset()))
        run.holds(loss=loss, actor=actor, critics=loss.qvalue_network_params, normalizer=normalizer)
        update = {
            name: Minimizer(
                run,
                f"loss_{of}",
                function,
                torch.optim.Adam(params.parameters(), lr=1e-2),
                targets=[NetworkSoftUpdate(loss, name, tau=0.1)],
            )
            for name, of, function, params in (
                ("qvalue_network", "qvalue", loss.value_loss, loss.qvalue_network_params),
                ("actor_network", "actor", loss.actor_loss, loss.actor_network_params),
            )
        }
        policy = TensorDictSequential(normalizer, actor)
        collector = exploring_collector(
            env, exploring(policy, env, noise=0.3), random_steps=WARMUP, total_steps=TOTAL, seed=0
        )
        buffer = ReplayBuffer(storage=LazyTensorStorage(TOTAL), batch_size=4)
        for step, transition in run.steps(
            collector, buffer, policy, eval_env, environment=kind.task.name
        ):
            if copy is not None and step == cut + 1:
                shutil.copytree(path, copy)
            buffer.extend(transition)
            normalizer.update(transition["observation"])
            model.observe(transition)
            if step % SETTINGS.world_model.fit_interval == 0:
                model.fit(buffer[:])
            if step >= WARMUP:
                states = normalizer(buffer.sample().select("observation"))
                for minimize in update.values():
                    minimize(states)
    if copy is not None and cut == TOTAL:
        shutil.copytree(path, copy)
    return Trained(path, buffer[:].clone(), log_of(env).record)


def log_of(env: Any) -> Log:
    """The log that the environment keeps of itself."""
    layer = env._env
    while not isinstance(layer, Log):
        layer = layer.env
    return layer


# ---------------------------------------------------------------- what must hold


def assert_stored_what_happened(data: TensorDictBase, log: list[Transition], kind: Kind) -> None:
    """Each stored transition is what the environment was given and gave, in float32."""
    assert len(data) == len(log)
    low, high = np.array(kind.bounds).T
    for stored, real in zip(data, log, strict=True):
        assert np.array_equal(stored["observation"], real.observation.astype(np.float32))
        following = stored["next", "observation"]
        assert np.array_equal(following, real.next_observation.astype(np.float32))
        assert stored["next", "reward"].item() == np.float32(real.reward)
        assert stored["next", "terminated"].item() == real.terminated
        assert stored["next", "done"].item() == (real.terminated or real.truncated)
        wanted = low + (stored["action"].numpy() + 1.0) / 2 * (high - low)
        rounded = 0.5 if np.dtype(kind.action_dtype).kind in "iu" else 0.0
        digits = 1e-3 if kind.action_dtype == "float16" else 1e-6
        assert (np.abs(wanted - real.action) <= rounded + digits * (high - low)).all()


def assert_same_run(one: Path, other: Path) -> None:
    """Networks, all that the last checkpoints hold, and the metrics but for the time."""
    for name in ("networks.pt", "best_networks.pt"):
        assert_equal(torch.load(one / name), torch.load(other / name), name)
    states = [torch.load(checkpoints(path)[0] / "state.pt") for path in (one, other)]
    for state in states:
        del state["metrics"], state["collector"]["episode"]["attributes"]  # counts, idle ones too
    assert_equal(*states, "state")
    assert metrics(one) == metrics(other)


def assert_equal(one: Any, other: Any, where: str) -> None:
    """Nested containers of tensors and plain values, to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}.{index}")
    elif isinstance(one, (torch.Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True), where
    else:
        assert one == other, where


def metrics(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("wall_time")} for row in rows]


def check(kind: Kind, cut: int) -> None:
    """Trains, resumes, and compares."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "resumed"
        whole = train(kind, Path(folder) / "whole", cut=cut, copy=copy)
        assert_stored_what_happened(whole.data, whole.record.transitions, kind)
        with warnings.catch_warnings(record=True) as said:
            for message in ("a new episode begins", "the run goes on in its episode"):
                warnings.filterwarnings("always", message=message)
            resumed = train(kind, copy, cut=cut)
        assert len(resumed.data) == TOTAL
        assert (resumed.data[:cut] == whole.data[:cut]).all()
        new = resumed.record.transitions[-(TOTAL - cut) :] if cut < TOTAL else []
        assert_stored_what_happened(resumed.data[cut:], new, kind)
        if kind.replayable:
            assert not any("a new episode begins" in str(warning.message) for warning in said)
            assert not said or kind.remembers != "nothing", said[0].message
        if kind.replayable or not said:
            assert (resumed.data == whole.data).all()
            assert_same_run(whole.path, copy)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Kind, int]:
    """An environment, and the step after which its run is cut."""
    return draw(kinds()), draw(st.integers(0, TOTAL))


RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@given(case=cases())
@settings(max_examples=12, derandomize=True, database=None, **RELAXED)
def test_a_run_is_right_and_goes_on(case):
    check(*case)


@pytest.mark.slow
@given(case=cases())
@settings(max_examples=400, **RELAXED)
def test_many_runs_are_right_and_go_on(case):
    check(*case)
