"""The loop that every training script runs, around an algorithm's own updates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector

from torchrl_mage.trainers.checkpoint import Checkpointer, resuming
from torchrl_mage.trainers.counters import Counters
from torchrl_mage.trainers.divergence import DivergenceError, DivergenceGuard
from torchrl_mage.trainers.evaluation import Evaluation
from torchrl_mage.trainers.guards import check_finite
from torchrl_mage.trainers.interruption import EXIT_INTERRUPTED, Interruption
from torchrl_mage.trainers.run_folder import RunFolder

TRANSITION = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
    ("next", "done"),
)


@dataclass
class TrainingLoop:
    """Collects transition after transition, and looks after the run between them.

    Iterating gives ``(step, transition)``: the count of environment steps, and a tensordict ``[1]``
    with the entries :data:`TRANSITION`, all finite. When the algorithm has learned from it, the
    loop checks for divergence, reports, evaluates and saves what is due, and stops where a signal
    asked for it (exit status :data:`EXIT_INTERRUPTED`).

    Args:
        collector: of one transition a batch; what is left of it is the length of the run.
        environment: its name, for messages.
        run: reports go there.
        checkpointer: saves the whole run.
        guard: the updates show it their losses.
        count: of this run, also one that is resumed.
        total_steps: length of the run.
        log_interval: steps between the logger's points.
        eval_interval: steps between evaluations; the last step has one too.
        checkpoint_interval: steps between checkpoints.
        assess: evaluates the policy after a given number of steps.
        reset_agent: replaces a diverged agent; ``None`` stops the run instead.

    Raises:
        FloatingPointError: policy or environment gave a value that is not finite.
        DivergenceError: training diverged and there is no ``reset_agent``.
    """

    collector: Collector
    environment: str
    run: RunFolder
    checkpointer: Checkpointer
    guard: DivergenceGuard
    count: Counters
    total_steps: int
    log_interval: int
    eval_interval: int
    checkpoint_interval: int
    assess: Callable[[int], Evaluation]
    reset_agent: Callable[[], None] | None = None
    evaluation: Evaluation | None = field(default=None, init=False)
    _interruption: Interruption = field(default_factory=Interruption, init=False)

    def __enter__(self) -> TrainingLoop:
        self.run.__enter__()
        self._interruption.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.run.__exit__(kind, error, trace)
        self._interruption.__exit__(kind, error, trace)
        self.collector.shutdown()

    def __iter__(self) -> Iterator[tuple[int, TensorDictBase]]:
        for batch in self.collector:
            transition = batch.select(*TRANSITION)
            self.count.step += transition.numel()
            step = self.count.step
            check_finite(transition.select("action"), step=step, source="policy")
            check_finite(transition, step=step, source=f"environment {self.environment}")
            yield step, transition
            self._guard(step, transition)
            self._report(step, batch)
            last = step == self.total_steps
            if step % self.checkpoint_interval == 0 or last or self._interruption.requested:
                self.checkpointer.save(step)
            if self._interruption.requested and not last:
                self.run.say(f"stopped at step {step}; continue with {resuming(self.run.path)}")
                sys.exit(EXIT_INTERRUPTED)
        if not self.count.updates:
            self.run.say(
                f"nothing was learned in {self.total_steps} steps, all of them warm-up: raise "
                "total_steps or lower warmup_steps"
            )
        # A run that is resumed at its end has no step left to evaluate after.
        self.evaluation = self.evaluation or self.assess(self.count.step)

    def _guard(self, step: int, transition: TensorDictBase) -> None:
        states = self.guard.states
        try:
            self.guard.check(step)
        except DivergenceError as error:
            batch = {"transition": transition.to_dict(), "states": states.to_dict()}
            saved = self.run.path / f"diverged_step_{step:09d}.pt"
            torch.save(batch, saved)
            if self.reset_agent is None:
                raise DivergenceError(
                    f"{error}. The step's batch is in {saved}; metrics.csv shows what grew first; "
                    "on_divergence=reset_agent goes on with a new agent."
                ) from error
            self.run.say(f"{error}: a new agent takes over")
            self.reset_agent()
            self.run.forget()
            # What a new agent does not mend, such as the world model's parameters.
            self.guard.check(step, everything=True)

    def _report(self, step: int, batch: TensorDictBase) -> None:
        self.count.episode_return += batch["next", "reward"].item()
        if batch["next", "done"].item():
            self.run.add(episode_return=torch.tensor(self.count.episode_return))
            self.count.episode_return = 0.0
        self.run.stepped()
        if step % self.log_interval == 0:
            self.run.log(step)
        if step % self.eval_interval == 0 or step == self.total_steps:
            self.evaluation = self.assess(step)
            self.run.evaluated(step, self.evaluation)
