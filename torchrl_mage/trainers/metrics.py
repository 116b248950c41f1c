"""What a run tells: ``metrics.csv``, the learning curve, a logger's points, the progress bar."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.record.loggers import get_logger
from torchrl.record.loggers.common import Logger

from torchrl_mage.trainers.evaluation import Evaluation
from torchrl_mage.trainers.stopwatch import Stopwatch

EVALUATION_COLUMNS = ("step", "eval_return_mean", "eval_return_std", "wall_time")


class RunningMeans:
    """Adds tensors up where they are, without waiting for the device, and averages on demand.

    Example:
        >>> import torch
        >>> means = RunningMeans()
        >>> means.add(loss=torch.tensor([1.0, 3.0]))
        >>> means.add(loss=torch.tensor([4.0]))
        >>> means.pop()
        {'loss': 3.0}
        >>> means.pop()
        {}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: Tensor) -> None:
        """Takes in the mean of each tensor, any shape."""
        for name, value in values.items():
            mean = value.detach().mean()
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean
            self._counts[name] = self._counts.get(name, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """The sums and counts since the last :meth:`pop`."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def pop(self) -> dict[str, float]:
        """The averages since the last call."""
        out = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return out


class Metrics:
    """Means of what was reported, between two points of the logger and two evaluations.

    ``metrics.csv`` gets one row an evaluation: :data:`EVALUATION_COLUMNS` (steps, undiscounted
    return, seconds since the start), then in the order in which they came the seconds since the
    start of each part of the run (:meth:`timing`) and a column for each metric that was ever
    reported: its mean since the row before, empty where there was none. Writes into the folder from
    the moment it is made: whoever makes it holds the folder's lock.

    Args:
        path: the run's folder.
        total_steps: length of the run in environment steps.
        title: what the curve and the progress bar are called.
        show: the metrics that stand beside the progress bar.
        logger: gets the metrics' means since its last point too, under ``train/``, and the
            evaluations, under ``eval/``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     metrics = Metrics(path, total_steps=10, title="demo")
        ...     metrics.report(loss=torch.tensor([0.0, 1.0]))
        ...     metrics.evaluated(10, Evaluation(torch.ones(2), torch.ones(2)))
        ...     metrics.close()
        ...     text = (Path(path) / "metrics.csv").read_text().split()
        >>> text[0]
        'step,eval_return_mean,eval_return_std,wall_time,loss,wall_time_rest'
        >>> text[1].split(",")[4]
        '0.5'
    """

    def __init__(
        self,
        path: str | Path,
        *,
        total_steps: int,
        title: str,
        show: Sequence[str] = (),
        logger: Logger | None = None,
    ) -> None:
        from tqdm.auto import tqdm  # of the extra "examples", as is matplotlib below

        self._path = Path(path)
        self._title, self._show, self._logger = title, show, logger
        self._since_point, self._since_row = RunningMeans(), RunningMeans()
        self._rows: list[dict[str, Any]] = []
        self._columns: dict[str, None] = {}  # an ordered set
        self._watch = Stopwatch()
        self._bar = tqdm(total=total_steps, desc=title, unit="step", dynamic_ncols=True)
        self._shown: dict[str, str] = {}

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        self._bar.write(message)

    def stepped(self, steps: int = 1) -> None:
        """Moves the progress bar on."""
        self._bar.update(steps)

    def timing(self, part: str) -> AbstractContextManager[None]:
        """What is done within counts as ``part``'s seconds."""
        return self._watch.part(part)

    def seconds(self) -> dict[str, float]:
        """The seconds since the start, by part."""
        return self._watch.seconds()

    def report(self, **values: Tensor) -> None:
        """Takes in the mean of each metric, a tensor of any shape, without waiting for the device.

        Raises:
            ValueError: a metric has the name of one of :data:`EVALUATION_COLUMNS`.
        """
        if taken := set(values) & set(EVALUATION_COLUMNS):
            raise ValueError(f"{sorted(taken)} are columns of the evaluation; name them otherwise.")
        self._columns |= dict.fromkeys(values)
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
        seconds = self._watch.seconds()
        total = round(sum(seconds.values()), 3)
        row = dict(
            zip(EVALUATION_COLUMNS, (step, evaluation.mean, evaluation.std, total), strict=True)
        )
        parts = {f"wall_time_{part}": round(spent, 3) for part, spent in seconds.items()}
        self._columns |= dict.fromkeys(parts)
        self._rows.append(row | parts | self._since_row.pop())
        self._write()
        if self._logger is not None:
            self._logger.log_scalar("eval/return_mean", evaluation.mean, step=step)
            self._logger.log_scalar("eval/return_std", evaluation.std, step=step)
        self._refresh({"return": evaluation.mean})
        self._draw()

    def state_dict(self) -> dict[str, Any]:
        """The rows, the running means and the time so far."""
        return {
            "rows": [dict(row) for row in self._rows],
            "columns": list(self._columns),
            "since_point": self._since_point.state_dict(),
            "since_row": self._since_row.state_dict(),
            "seconds": self._watch.seconds(),
            "steps": self._bar.n,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`: later rows and CSV points are struck out."""
        self._rows = [dict(row) for row in state["rows"]]
        self._columns = dict.fromkeys(state["columns"])
        self._since_point.load_state_dict(state["since_point"])
        self._since_row.load_state_dict(state["since_row"])
        self._watch.load(state["seconds"])
        self._bar.n = self._bar.initial = state["steps"]
        self._write()
        for file in self._path.glob("logs/scalars/**/*.csv"):
            points = file.read_text().splitlines(keepends=True)
            kept = [line for line in points if int(line.split(",")[0]) <= state["steps"]]
            file.write_text("".join(kept))

    def _write(self) -> None:
        """Whole or not at all, so that a reader never sees half a row."""
        scratch = self._path / "metrics.csv.writing"
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*EVALUATION_COLUMNS, *self._columns], restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        scratch.rename(self._path / "metrics.csv")

    def _refresh(self, values: dict[str, float]) -> None:
        self._shown |= {name: f"{value:.4g}" for name, value in values.items()}
        self._bar.set_postfix(self._shown, refresh=False)

    def _draw(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        points = [[row[name] for name in EVALUATION_COLUMNS[:3]] for row in self._rows]
        step, mean, std = torch.tensor(points, dtype=torch.float64).T
        axes.fill_between(step, mean - std, mean + std, alpha=0.2, linewidth=0)
        axes.plot(step, mean, marker="o", markersize=3)
        axes.set(xlabel="environment steps", ylabel="evaluation return", title=self._title)
        axes.grid(alpha=0.3)
        figure.savefig(self._path / "learning_curve.png", dpi=120)


def open_logger(kind: str, path: Path) -> Logger:
    """TorchRL's logger for a run's folder, so that a resumed run goes on in its own log.

    A resumed run's CSV files are cut to its checkpoint by :class:`Metrics`; W&B goes on in the
    same run; TensorBoard shows the points after the checkpoint twice, the same on a CPU.

    Args:
        kind: ``"csv"``, ``"tensorboard"`` or ``"wandb"``.
        path: the run folder.

    Raises:
        ImportError: the logger's package is not installed.
    """
    run_id = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    settings = {"id": run_id, "resume": "allow", "project": "torchrl_mage"}
    try:
        return get_logger(kind, str(path), "logs", wandb_kwargs=settings)
    except ImportError as error:
        raise ImportError(
            f'logger={kind} needs its package: pip install -e ".[loggers]" ({error})'
        ) from error
