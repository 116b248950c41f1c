"""pytest tests/benchmarks: policy step, model fit and environment step, of both recipes.

Naive, eager and compiled, in float32 and bfloat16. Of some: ``-k "policy and fast"``.

Not part of the default suite, and asserts no times.
"""

from __future__ import annotations

import pytest
import torch
from benchmarks.problem import SIZES, NaiveTrainer, Trainer
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_mage import get_task
from torchrl_mage.trainers.hardware import has_fast_bfloat16

HOW = ["naive", "eager", "compiled", "eager bf16", "compiled bf16"]


def trainer(size, how):
    if how == "naive":
        return NaiveTrainer(size)
    mode, _, precision = how.partition(" ")
    if precision and not has_fast_bfloat16(torch.device("cpu")):
        pytest.skip("no fast bfloat16 products here")
    return Trainer(size, compile=mode == "compiled", precision=precision or "float32")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", SIZES)
def test_policy_step(benchmark, size, how):
    steps = trainer(SIZES[size], how).policy_steps
    benchmark.extra_info.update(
        what="policy step", size=size, how=how, per_call=2, flop=SIZES[size].policy_flop
    )
    benchmark.pedantic(steps, rounds=15, warmup_rounds=3)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", SIZES)
def test_model_fit(benchmark, size, how):
    fit = trainer(SIZES[size], how).fit_batch
    benchmark.extra_info.update(
        what="model fit", size=size, how=how, per_call=1, flop=SIZES[size].fit_flop
    )
    benchmark.pedantic(fit, rounds=40, warmup_rounds=8)


@pytest.mark.parametrize("size", SIZES)
def test_env_step(benchmark, size):
    """Collector, buffer and statistics: what an environment step costs outside the updates."""
    task = Trainer(SIZES[size], compile=False)
    env = get_task(SIZES[size].task).make_env()
    collector = Collector(
        env, None, frames_per_batch=1, total_frames=-1, auto_register_policy_transforms=False
    )
    buffer = ReplayBuffer(storage=LazyTensorStorage(100_000), batch_size=10 * SIZES[size].batch)
    batches = iter(collector)

    def step():
        batch = next(batches)
        buffer.extend(batch.select("observation", "action", ("next", "observation")))
        task.normalizer.update(batch["observation"])
        task.normalizer(buffer.sample().select("observation"))

    benchmark.extra_info.update(what="env step", size=size, how="", per_call=1)
    benchmark.pedantic(step, rounds=200, warmup_rounds=20)
    collector.shutdown()
