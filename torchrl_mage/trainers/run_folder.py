"""A run's folder: metrics, learning curve, and what a progress bar shows."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchrl.record.loggers import Logger
from tqdm.auto import tqdm

from torchrl_mage.trainers.checkpoint import checkpoints, resuming
from torchrl_mage.trainers.evaluation import Evaluation
from torchrl_mage.trainers.metrics import RunningMeans
from torchrl_mage.trainers.resume import NETWORKS
from torchrl_mage.trainers.run_lock import RunLock

EVALUATION_COLUMNS = ("step", "eval_return_mean", "eval_return_std", "wall_time")


class RunFolder:
    """Writes ``metrics.csv``, ``learning_curve.png`` and a logger's scalars, and shows progress.

    Entered, it keeps other processes out. ``metrics.csv`` gets one row an evaluation:
    :data:`EVALUATION_COLUMNS` (steps, undiscounted return, seconds since the start), then
    ``columns``: the mean of each metric since the row before, empty where there was none.

    Args:
        path: the folder, made if it is missing.
        columns: the metrics that :meth:`add` may get.
        total_steps: length of the run in environment steps.
        title: what the curve and the progress bar are called.
        show: the metrics that stand beside the progress bar.
        logger: gets the metrics' means since its last point too, under ``train/``, and the
            evaluations, under ``eval/``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     with RunFolder(path, columns=["loss"], total_steps=10, title="demo") as run:
        ...         run.add(loss=torch.tensor([0.0, 1.0]))
        ...         run.evaluated(10, Evaluation(torch.ones(2), torch.ones(2)))
        ...     text = (Path(path) / "metrics.csv").read_text().split()
        >>> text[0], text[1][-3:]
        ('step,eval_return_mean,eval_return_std,wall_time,loss', '0.5')
    """

    def __init__(
        self,
        path: str | Path,
        *,
        columns: Sequence[str],
        total_steps: int,
        title: str,
        show: Sequence[str] = (),
        logger: Logger | None = None,
    ) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._columns = tuple(columns)
        self._title = title
        self._show = show
        self._logger = logger
        self._since_point = RunningMeans()
        self._since_row = RunningMeans()
        self._rows: list[list[Any]] = []
        self._start = time.monotonic()
        self._bar = tqdm(total=total_steps, desc=title, unit="step", dynamic_ncols=True)
        self._shown: dict[str, str] = {}
        self._lock = RunLock(self.path)

    def __enter__(self) -> RunFolder:
        self._lock.acquire()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._lock.release()
        self._bar.close()
        saved = checkpoints(self.path)
        if isinstance(error, Exception) and saved:
            self.say(f"{resuming(self.path)} continues from its newest checkpoint, {saved[0].name}")

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        self._bar.write(message)

    def stepped(self, steps: int = 1) -> None:
        """Moves the progress bar on."""
        self._bar.update(steps)

    def add(self, **values: Tensor) -> None:
        """Takes in the mean of each metric, a tensor of any shape, without waiting for the device.

        Raises:
            ValueError: a metric is no column.
        """
        unknown = set(values) - set(self._columns)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no columns; these are: {self._columns}.")
        means = {name: value.detach().mean() for name, value in values.items()}
        self._since_point.add(**means)
        self._since_row.add(**means)

    def forget(self) -> None:
        """Drops the metrics since the last point and row, those of an agent that is gone."""
        self._since_point.pop()
        self._since_row.pop()

    def log(self, step: int) -> None:
        """Passes the means since the last point on to the logger and the progress bar."""
        values = self._since_point.pop()
        if self._logger is not None:
            for name, value in values.items():
                self._logger.log_scalar(f"train/{name}", value, step=step)
        self._refresh({name: values[name] for name in self._show if name in values})

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Adds a row to ``metrics.csv`` and draws the curve anew."""
        values = self._since_row.pop()
        seconds = round(time.monotonic() - self._start, 3)
        row = [step, evaluation.mean, evaluation.std, seconds]
        self._rows.append(row + [values.get(name, "") for name in self._columns])
        self._write_metrics()
        if self._logger is not None:
            self._logger.log_scalar("eval/return_mean", evaluation.mean, step=step)
            self._logger.log_scalar("eval/return_std", evaluation.std, step=step)
        self._refresh({"return": evaluation.mean})
        self._draw()

    def finished(self, evaluation: Evaluation, networks: dict[str, Any]) -> None:
        """Saves the final networks, whose file marks the run's end, and prints the last line."""
        scratch = self.path / f"{NETWORKS}.writing"
        torch.save(networks, scratch)
        scratch.rename(self.path / NETWORKS)
        self.say(f"final evaluation return: {evaluation}")

    def state_dict(self) -> dict[str, Any]:
        """The rows, the running means and the time so far."""
        return {
            "rows": [list(row) for row in self._rows],
            "since_point": self._since_point.state_dict(),
            "since_row": self._since_row.state_dict(),
            "seconds": time.monotonic() - self._start,
            "steps": self._bar.n,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`: later rows and CSV points are struck out."""
        self._rows = [list(row) for row in state["rows"]]
        self._since_point.load_state_dict(state["since_point"])
        self._since_row.load_state_dict(state["since_row"])
        self._start = time.monotonic() - state["seconds"]
        self._bar.n = self._bar.initial = state["steps"]
        self._write_metrics()
        for file in self.path.glob("logs/scalars/**/*.csv"):
            points = file.read_text().splitlines(keepends=True)
            kept = [line for line in points if int(line.split(",")[0]) <= state["steps"]]
            file.write_text("".join(kept))

    def _write_metrics(self) -> None:
        """Whole or not at all, so that a reader never sees half a row."""
        scratch = self.path / "metrics.csv.writing"
        with scratch.open("w", newline="") as file:
            csv.writer(file).writerows([[*EVALUATION_COLUMNS, *self._columns], *self._rows])
        scratch.rename(self.path / "metrics.csv")

    def _refresh(self, values: dict[str, float]) -> None:
        self._shown |= {name: f"{value:.4g}" for name, value in values.items()}
        self._bar.set_postfix(self._shown, refresh=False)

    def _draw(self) -> None:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        step, mean, std = torch.tensor([row[:3] for row in self._rows], dtype=torch.float64).T
        axes.fill_between(step, mean - std, mean + std, alpha=0.2, linewidth=0)
        axes.plot(step, mean, marker="o", markersize=3)
        axes.set(xlabel="environment steps", ylabel="evaluation return", title=self._title)
        axes.grid(alpha=0.3)
        figure.savefig(self.path / "learning_curve.png", dpi=120)
