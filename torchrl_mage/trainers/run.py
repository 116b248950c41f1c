"""The one owner of a training run: its folder, what it holds, what it tells, when it stops."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase

from torchrl_mage.trainers.checkpoint import Checkpointer, Stateful, checkpoints, resuming
from torchrl_mage.trainers.collection import CollectorState
from torchrl_mage.trainers.divergence import DivergenceError, DivergenceGuard, check_finite
from torchrl_mage.trainers.evaluation import Evaluation, evaluate
from torchrl_mage.trainers.folder import BEST, NETWORKS, held_folder
from torchrl_mage.trainers.hardware import RandomState
from torchrl_mage.trainers.metrics import Metrics, open_logger
from torchrl_mage.trainers.optimisation import Minimizer
from torchrl_mage.trainers.register import Register

# EX_TEMPFAIL of sysexits.h: try again later, with resume.
EXIT_INTERRUPTED = 75

RESETS_IN_A_ROW = 10  # more new agents than that, one a step, mend nothing

TRANSITION = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
    ("next", "done"),
)


class Interrupted(Exception):
    """A signal stopped the run at a whole step; the message says how to go on."""


class Run:
    """A training run from its lock to its last line.

    Entered, it holds the folder's lock before it touches anything else in there. What the run must
    not forget is registered once, by name (:meth:`holds`; a :class:`Minimizer` registers itself):
    checkpoints, the final networks, the guard and a reset all read that one register, and
    :meth:`steps` refuses a policy or a world model of which it holds not all.

    Args:
        path: the folder, made if it is missing.
        title: what the curve and the progress bar are called.
        total_steps: length of the run in environment steps, those on the data alone included.
        offline_steps: how many of them, the first ones, are on the data alone.
        log_interval: steps between the logger's points.
        eval_interval: steps between evaluations; the last step has one too.
        eval_episodes: episodes of an evaluation.
        checkpoint_interval: steps between checkpoints.
        seed: of the evaluations, plus the step.
        discount: gamma, by which rewards tell how large a value may be.
        logger: ``"csv"``, ``"tensorboard"`` or ``"wandb"``.
        show: the metrics that stand beside the progress bar.
        on_divergence: ``"stop"``, or ``"reset_agent"``: a new actor and new critics.
        divergence_limit: the largest mean Huber TD error, in units of the value range
            ``max |r| / (1 - gamma)``, but no less than the authors' 100.
        scaled: whether values are learned in units of the value range: then the limit is in them.
        settings: nested, saved as ``config.yaml`` when the run begins; ``None`` for no such file.

    Raises:
        RunInUseError: when it is entered, and another process trains in the folder.
        CheckpointError: when it is entered, and the folder cannot be written or holds a run with
            other settings.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        title: str,
        total_steps: int,
        log_interval: int,
        eval_interval: int,
        eval_episodes: int,
        checkpoint_interval: int,
        seed: int,
        discount: float,
        offline_steps: int = 0,
        logger: str = "csv",
        show: Sequence[str] = ("episode_return",),
        on_divergence: str = "stop",
        divergence_limit: float = 1.0,
        scaled: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.title, self.total_steps = Path(path), title, total_steps
        self.step, self.evaluation = 0, None
        self._offline_steps = offline_steps
        self._log_interval, self._eval_interval = log_interval, eval_interval
        self._eval_episodes, self._checkpoint_interval = eval_episodes, checkpoint_interval
        self._seed, self._discount, self._logger, self._show = seed, discount, logger, show
        self._on_divergence, self._divergence_limit = on_divergence, divergence_limit
        self._scaled, self._settings = scaled, settings
        self._register, self._stack = Register(), ExitStack()
        self._episode_return, self._largest_reward = 0.0, 0.0
        self._reset_at, self._resets, self._best = -1, 0, float("-inf")
        self._stop_requested = False

    evaluation: Evaluation | None

    # ------------------------------------------------------------------ its life

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            stack.enter_context(held_folder(self.path, self._settings))
            self._metrics = Metrics(
                self.path,
                total_steps=self.total_steps,
                title=self.title,
                show=self._show,
                logger=open_logger(self._logger, self.path),
            )
            stack.callback(self._metrics.close)
            self._note_signals(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        saved = checkpoints(self.path)
        if saved and isinstance(error, Exception) and not isinstance(error, Interrupted):
            self.say(f"{resuming(self.path)} continues from its newest checkpoint, {saved[0].name}")

    def _note_signals(self, stack: ExitStack) -> None:
        """SIGINT and SIGTERM ask for a stop at the next whole step; a second one is as ever."""

        def note(number: int, frame: FrameType | None) -> None:
            self._stop_requested = True
            signal.signal(number, before[number])

        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
            stack.callback(signal.signal, number, before[number])

    # ------------------------------------------------------------------ its register

    def holds(self, **parts: Stateful) -> None:
        """Registers what the run must not forget, by name; see :class:`Register`.

        Raises:
            ValueError: a name is taken.
        """
        self._register.add(**parts)

    def minimises(self, minimizer: Minimizer) -> None:
        """Registers a minimizer, which does so itself."""
        self._register.add(**{minimizer.name: minimizer})

    # ------------------------------------------------------------------ what it is told

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        self._metrics.say(message)

    def report(self, **values: Tensor) -> None:
        """Takes in the mean of each metric, a tensor of any shape."""
        self._metrics.report(**values)

    def watch(self, states: TensorDictBase | None = None, **values: Tensor) -> None:
        """Looks at the mean of each quantity at the end of the step."""
        self._guard.watch(states, **values)

    def timing(self, part: str) -> AbstractContextManager[None]:
        """What is done within counts as ``part``'s seconds in ``metrics.csv``."""
        return self._metrics.timing(part)

    # ------------------------------------------------------------------ its steps

    def steps(
        self,
        collector: Collector,
        buffer: ReplayBuffer,
        policy: TensorDictModuleBase,
        eval_env: EnvBase,
        *,
        environment: str,
        data: TensorDictBase | None = None,
        diagnose: Callable[[int, Evaluation], None] | None = None,
    ) -> Iterator[tuple[int, TensorDictBase]]:
        """Collects transition after transition, and looks after the run between them.

        Iterating gives the count of steps, and what is new: a tensordict ``[1]`` with the entries
        :data:`TRANSITION`, all finite; at step 0 all of ``data``, if the run begins with any; at
        its offline steps ``[0]``, since nothing is collected. When the algorithm has learned from
        it, the run checks for divergence, reports, evaluates and saves what is due, and stops where
        a signal asked for it. After the last step it saves the final networks.

        Args:
            collector: of one transition a batch; what is left of it is the length of the run.
            buffer: the replay buffer, which only grows.
            policy: what is evaluated, deterministically; all of it must be held.
            eval_env: an environment of its own.
            environment: its name, for messages.
            data: transitions ``[N]`` to begin with; a run that goes on has them in its checkpoint.
            diagnose: reports more at an evaluation, given the step and its episodes.

        Raises:
            ValueError: the run does not hold all of the policy or the world model.
            FloatingPointError: policy or environment gave a value that is not finite.
            DivergenceError: training diverged and is not reset.
            Interrupted: a signal stopped the run.
        """
        self._register.close(policy)
        self._stack.callback(collector.shutdown)
        self._guard = DivergenceGuard(
            {minimizer.name: minimizer.parameters for minimizer in self._register.minimizers},
            limits={"huber_td_error": self._largest_td_error, "loss_actor": 1e5},  # the authors'
        )
        position = CollectorState(collector)
        checkpointer = Checkpointer(
            self.path,
            {
                **self._register.checkpointed(),
                "collector": position,
                "metrics": self._metrics,
                "run": self,
                "random": RandomState(),
            },
            buffer,
        )
        if checkpointer.restore_or_start():
            self.say(f"resumed {self.path} at step {self.step}")
            self._episode_return *= not position.new_episode
        assess = partial(self._assess, policy, eval_env, diagnose)
        if data is not None and not len(buffer):
            self._largest_reward = data["next", "reward"].abs().max().item()
            with self.timing("updates"):
                yield 0, data
            self._end_step(data)
            checkpointer.save(0)
        for batch in self._timed(self._batches(collector, buffer), "environment"):
            transition = batch.select(*TRANSITION)
            self.step += 1
            step, last = self.step, self.step == self.total_steps
            check_finite(transition.select("action"), step=step, source="policy")
            check_finite(transition, step=step, source=f"environment {environment}")
            reward = batch["next", "reward"].sum().item()
            self._largest_reward = max(self._largest_reward, abs(reward))
            with self.timing("updates"):
                yield step, transition
            self._end_step(transition)
            self._tell(step, reward, ended=batch["next", "done"].any().item())
            if step % self._eval_interval == 0 or last:
                with self.timing("evaluation"):
                    self.evaluation = assess(step)
                self._metrics.evaluated(step, self.evaluation)
                if self.evaluation.mean > self._best:
                    self._best = self.evaluation.mean
                    self._save_networks(BEST)
            if step % self._checkpoint_interval == 0 or last or self._stop_requested:
                checkpointer.save(step)
            if self._stop_requested and not last:
                raise Interrupted(f"stopped at step {step}; continue with {resuming(self.path)}")
        if not any(minimizer.count for minimizer in self._register.agents_minimizers):
            self.say(
                f"nothing was learned in {self.total_steps} steps, all of them warm-up: raise "
                "total_steps or lower warmup_steps"
            )
        # A run that is resumed at its end has no step left to evaluate after.
        self.evaluation = self.evaluation or assess(self.step)
        self._finish(self.evaluation)

    def _batches(self, collector: Collector, buffer: ReplayBuffer) -> Iterator[TensorDictBase]:
        """Nothing new at the offline steps, then transition after transition."""
        for _ in range(self.step, self._offline_steps):
            yield buffer[:0]
        yield from collector

    def _timed(self, batches: Iterable[TensorDictBase], part: str) -> Iterator[TensorDictBase]:
        """Waits for each batch in ``part``'s time."""
        waiting = iter(batches)
        while True:
            with self.timing(part):
                batch = next(waiting, None)
            if batch is None:
                return
            yield batch

    def _assess(
        self,
        policy: TensorDictModuleBase,
        env: EnvBase,
        diagnose: Callable[[int, Evaluation], None] | None,
        step: int,
    ) -> Evaluation:
        found = evaluate(env, policy, episodes=self._eval_episodes, seed=self._seed + step)
        if diagnose is not None:
            diagnose(step, found)
        return found

    def _tell(self, step: int, reward: float, *, ended: bool) -> None:
        self._episode_return += reward
        if ended:
            self.report(episode_return=torch.tensor(self._episode_return))
            self._episode_return = 0.0
        self._metrics.stepped()
        if step % self._log_interval == 0:
            self._metrics.log(step)

    def _save_networks(self, name: str) -> None:
        """Whole or not at all."""
        networks = self._register.networks
        scratch = self.path / f"{name}.writing"
        torch.save({part: module.state_dict() for part, module in networks.items()}, scratch)
        scratch.rename(self.path / name)

    def _finish(self, evaluation: Evaluation) -> None:
        """Saves the final networks, whose file marks the run's end, and prints the last lines."""
        self._save_networks(NETWORKS)
        self._metrics.close()  # the bar stands above the last lines
        seconds = self._metrics.seconds()
        parts = sorted(seconds.items(), key=lambda part: -part[1])
        said = ", ".join(f"{part} {spent:.0f}" for part, spent in parts)
        self.say(f"seconds: {sum(seconds.values()):.0f} ({said})")
        self.say(f"final evaluation return: {evaluation}")

    # ------------------------------------------------------------------ divergence

    def _largest_td_error(self) -> float:
        """The limit of the mean Huber TD error, in the unit of the values that are learned."""
        if self._scaled:
            return self._divergence_limit
        value_range = self._largest_reward / (1 - self._discount)
        return self._divergence_limit * max(value_range, 100.0)

    def _end_step(self, transition: TensorDictBase) -> None:
        states = self._guard.states
        try:
            self._guard.check(self.step)
        except DivergenceError as error:
            batch = {"transition": transition.to_dict(), "states": states.to_dict()}
            saved = self.path / f"diverged_step_{self.step:09d}.pt"
            torch.save(batch, saved)
            where = f"The step's batch is in {saved}; metrics.csv shows what grew first"
            if self._on_divergence != "reset_agent":
                raise DivergenceError(
                    f"{error}. {where}; on_divergence=reset_agent goes on with a new agent, "
                    "divergence_limit (in units of the value range) allows more."
                ) from error
            self._resets = self._resets + 1 if self._reset_at == self.step - 1 else 1
            if self._resets > RESETS_IN_A_ROW:
                raise DivergenceError(
                    f"{error}, as did each of the {RESETS_IN_A_ROW} agents before it, one a step: "
                    f"a new one does not mend it. {where}; divergence_limit (in units of the "
                    "value range) allows more."
                ) from error
            self.say(f"{error}: a new agent takes over")
            self._reset_at = self.step
            self._register.reset_agent()
            self._metrics.forget()
            # What a new agent does not mend, such as the world model's parameters.
            self._guard.check(self.step, everything=True)

    # ------------------------------------------------------------------ its state

    def state_dict(self) -> dict[str, Any]:
        """What it counts."""
        return {
            "step": self.step,
            "episode_return": self._episode_return,
            "largest_reward": self._largest_reward,
            "reset_at": self._reset_at,
            "resets": self._resets,
            "best": self._best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.step = state["step"]
        self._episode_return = state["episode_return"]
        self._largest_reward = state["largest_reward"]
        self._reset_at, self._resets = state["reset_at"], state["resets"]
        self._best = state["best"]
