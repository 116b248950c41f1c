"""Peers' published curves, which ``plot.py --peers`` draws under the runs' own."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

COLUMNS = ("task", "method", "step", "return_mean", "return_std", "source")
# Twenty styles that tell methods apart without the colours, which are the runs'.
DASHES = ("--", ":", "-.", (0, (9, 2)))
SHADES = (("0.2", "."), ("0.35", "x"), ("0.5", "^"), ("0.6", "s"), ("0.7", "d"))  # grey, marker


class Point(NamedTuple):
    """A method's published return on one of the runs' tasks; the spread is 0 where none is."""

    task: str
    method: str
    step: int
    value: float
    spread: float
    source: str


def read_peers(file: Path, ends: dict[str, int]) -> list[Point]:
    """The points of the tasks that are drawn, up to the step where each one's runs end.

    Args:
        file: a CSV with :data:`COLUMNS`, of which ``return_std`` may be empty; a task is named with
            or without its version, and ``CartPole`` is the continuous one.
        ends: last step by task.

    Raises:
        SystemExit: a column is missing, or a number is none.
    """
    tasks = {plain(task): task for task in ends}
    with file.open(newline="") as lines:
        reader = csv.DictReader(lines)
        found = reader.fieldnames or []
        if missing := [column for column in COLUMNS if column not in found]:
            raise SystemExit(
                f"{file} has no column {', '.join(missing)}: peers' curves need {list(COLUMNS)}, "
                f"it has {list(found)}."
            )
        points = []
        for row in reader:
            try:
                step, value = int(float(row["step"])), float(row["return_mean"])
                spread = float(row["return_std"] or 0)
            except (TypeError, ValueError) as error:
                raise SystemExit(
                    f"{file}, line {reader.line_num}: {error}; step, return_mean and return_std "
                    "must be numbers, the last may be empty."
                ) from error
            task = tasks.get(plain(row["task"]))
            if task is not None and step <= ends[task]:
                points.append(Point(task, row["method"], step, value, spread, row["source"]))
    return sorted(points, key=lambda point: (list(ends).index(point.task), point[1:3]))


def plain(task: str) -> str:
    """A task's name without namespace and version."""
    return re.sub(r"-v\d+$", "", task.rpartition("/")[2]).removeprefix("Continuous")


def peer_table(points: list[Point]) -> list[str]:
    """Each method's last point as Markdown, in the order of :func:`read_peers`."""
    lines = ["| task | method | step | return | spread | source |", "|---" * 6 + "|"]
    last = {(point.task, point.method): point for point in points}
    for task, method, step, value, spread, source in last.values():
        numbers = f"{step} | {value:.2f} | {f'{spread:.2f}' if spread else ''}"
        lines.append(f"| {task} | {method} | {numbers} | {source} |")
    return lines


def draw_peers(axes: Axes, task: str, points: Sequence[Point]) -> None:
    """A thin grey line a method and its spread, beneath other curves; alike on every task."""
    for turn, method in enumerate(sorted({point.method for point in points})):
        mine = [point for point in points if (point.task, point.method) == (task, method)]
        if not mine:
            continue
        steps, values, spreads = np.array([point[2:5] for point in mine]).T
        color, marker = SHADES[turn // len(DASHES) % len(SHADES)]
        low, high = values - spreads, values + spreads
        axes.fill_between(steps, low, high, color=color, alpha=0.06, linewidth=0, zorder=1)
        # Of a short run's axis a method may have but one point: its marker shows it.
        axes.plot(
            steps,
            values,
            color=color,
            linestyle=DASHES[turn % len(DASHES)],
            linewidth=0.9,
            marker=marker,
            markersize=3,
            zorder=1,
            label=method,
        )
