"""The trainer's updates compiled by inductor: eager's numbers, and compiled but once."""

from __future__ import annotations

import pytest
import torch
from benchmarks.problem import Size, Trainer

TINY = Size("Pendulum-v1", obs=3, action=1, batch=32, model=(16,), actor=(16,), critic=(16, 16))


def advance(trainer, steps):
    for step in steps:
        trainer.policy_steps()
        trainer.fit_batch()
        # What changes in a run between two updates, in place.
        trainer.normalizer.update(torch.randn(4, TINY.obs) + step)
        trainer.dynamics.update_normalizer(trainer.data[4 * step : 4 * step + 4])


def state(trainer):
    return {
        **trainer.loss.state_dict(),
        **{f"model.{name}": value for name, value in trainer.dynamics.state_dict().items()},
    }


@pytest.mark.slow
def test_compiled_updates_equal_eager_ones_and_compile_once():
    eager, compiled = Trainer(TINY, compile=False), Trainer(TINY, compile=True)
    start = {name: value.clone() for name, value in state(eager).items()}
    torch.testing.assert_close(state(compiled), start)
    torch.manual_seed(1)
    advance(eager, range(12))
    torch.manual_seed(1)
    advance(compiled, range(2))
    with torch._dynamo.config.patch(error_on_recompile=True):
        advance(compiled, range(2, 12))
    torch.testing.assert_close(state(compiled), state(eager), rtol=1e-4, atol=1e-6)
    still = {name for name, value in state(eager).items() if torch.equal(value, start[name])}
    trained = {name for name in start if name.endswith(("weight", "bias"))}
    assert len(trained) >= 20
    assert not still & trained, "nothing is compared that did not move"
