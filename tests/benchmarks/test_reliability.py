"""pytest tests/benchmarks: what the guard against divergence and a checkpoint cost."""

from __future__ import annotations

import pytest
import torch
from benchmarks.problem import SIZES, Trainer
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_mage.trainers import Checkpointer, DivergenceGuard


@pytest.mark.parametrize("size", SIZES)
def test_guard(benchmark, size):
    """An environment step's worth: ten critic updates, five of the actor, one check."""
    trainer = Trainer(SIZES[size], compile=False)
    guard = DivergenceGuard(
        {
            "loss_world_model": trainer.dynamics.parameters(),
            "loss_qvalue": trainer.loss.qvalue_network_params.parameters(),
            "loss_actor": trainer.loss.actor_network_params.parameters(),
        },
        limits={"td_error": 1e9},
    )
    states, loss, td_error = trainer._states(), torch.ones(()), torch.ones(2, SIZES[size].batch)

    def step():
        for turn in range(10):
            guard.watch(states, loss_qvalue=loss, td_error=td_error)
            if turn % 2:
                guard.watch(loss_actor=loss)
        guard.check(1)

    benchmark.extra_info.update(what="guard, an env step", size=size, how="", per_call=1)
    benchmark.pedantic(step, rounds=100, warmup_rounds=10)


@pytest.mark.parametrize("stored", [1_000, 100_000])
@pytest.mark.parametrize("size", SIZES)
def test_checkpoint(benchmark, size, stored, tmp_path):
    """500 new transitions, behind a short or a long buffer."""
    trainer, shape = Trainer(SIZES[size], compile=False), SIZES[size]
    buffer = ReplayBuffer(storage=LazyTensorStorage(2 * stored + 20_000))
    checkpointer = Checkpointer(
        tmp_path,
        {"loss": trainer.loss, "dynamics": trainer.dynamics, **trainer.optimizers},
        buffer,
    )

    def transitions(count):
        return TensorDict(
            {
                "observation": torch.zeros(count, shape.obs),
                "action": torch.zeros(count, shape.action),
                ("next", "observation"): torch.zeros(count, shape.obs),
            },
            [count],
        )

    buffer.extend(transitions(stored))
    checkpointer.save(stored)
    new = transitions(500)

    def save():
        buffer.extend(new)
        checkpointer.save(len(buffer))

    benchmark.extra_info.update(what="checkpoint", size=size, how=f"of {stored}", per_call=1)
    benchmark.pedantic(save, rounds=10, warmup_rounds=1)
