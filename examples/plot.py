"""Learning curves of finished runs: one panel a task, one curve a setting, over its seeds.

python examples/plot.py runs/mage_td3              # all runs below, to learning_curves.png and .csv
python examples/plot.py runs --median --smooth 5 --out figure
python examples/plot.py runs --table               # maximum average returns, as the paper's Table 1

Runs that differ in nothing but the seed are one curve: the mean (or median) and its bootstrapped
95 % confidence interval over the seeds, smoothed by a uniform window as in the paper (appendix
D.2); the curve before smoothing is drawn thin beneath it.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

# What a run is not told apart by.
IGNORED = (
    "seed",
    "resume",
    "logger",
    "video",
    "device",
    "threads",
    "compile",
    "checkpoint_interval",
)
COLUMNS = ("task", "setting", "step", "runs", "center", "low", "high", "raw")


@dataclass
class Run:
    """One run's settings, flattened to dotted keys, and a column of its ``metrics.csv``."""

    settings: dict[str, Any]
    steps: np.ndarray
    values: np.ndarray

    @property
    def task(self) -> str:
        """The environment's name."""
        return self.settings["env.name"]


def read_runs(folders: list[Path], metric: str) -> list[Run]:
    """Every run below ``folders`` that has ``metric``, with the rows where it has."""
    runs = []
    for file in sorted({f for folder in folders for f in folder.rglob("metrics.csv")}):
        with file.open() as lines:
            rows = [row for row in csv.DictReader(lines) if row.get(metric)]
        config = file.with_name("config.yaml")
        if not rows or not config.exists():
            continue
        runs.append(
            Run(
                flatten(yaml.safe_load(config.read_text())),
                np.array([int(row["step"]) for row in rows]),
                np.array([float(row[metric]) for row in rows]),
            )
        )
    if not runs:
        raise SystemExit(
            f"no metrics.csv with a column {metric!r} beside a config.yaml below "
            f"{[str(f) for f in folders]}."
        )
    return runs


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def group(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by task and by the settings in which the runs of that task differ."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        peers = [peer.settings for peer in runs if peer.task == run.task]
        keys = [
            key
            for key in run.settings
            if key not in IGNORED and any(peer.get(key) != run.settings[key] for peer in peers)
        ]
        label = ", ".join(f"{key}={run.settings[key]}" for key in keys)
        groups[run.task, label or "all settings equal"].append(run)
    return groups


def aligned(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all runs have, ``[steps]``, and their values there, ``[runs, steps]``."""
    common = set.intersection(*(set(run.steps.tolist()) for run in runs))
    steps = np.array(sorted(common))
    return steps, np.stack([run.values[np.isin(run.steps, steps)] for run in runs])


def maximum_average(groups: dict[tuple[str, str], list[Run]]) -> list[str]:
    """Table 1 (appendix B.5) as Markdown, unsmoothed; population standard deviations."""
    lines = ["| task | setting | runs | step | maximum average | best of each |", "|---" * 6 + "|"]
    for (task, label), runs in groups.items():
        steps, values = aligned(runs)
        top = values.mean(0).argmax()
        numbers = [f"{x.mean():.2f} +- {x.std():.2f}" for x in (values[:, top], values.max(1))]
        lines.append(
            " | ".join([f"| {task}", label, f"{len(runs)}", f"{steps[top]}", *numbers]) + " |"
        )
    return lines


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred uniform window along the last axis, truncated at the ends."""
    half = window // 2
    size = values.shape[-1]
    parts = [values[..., max(0, i - half) : i + half + 1].mean(-1) for i in range(size)]
    return np.stack(parts, -1)


def bootstrap(
    values: np.ndarray, center: Any, samples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap over the first axis (runs): the 95 % interval of ``center``."""
    index = np.random.default_rng(0).integers(len(values), size=(samples, len(values)))
    low, high = np.percentile(center(values[index], axis=1), [2.5, 97.5], axis=0)
    return low, high


def main() -> None:
    """Reads, writes the table, and draws it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument("--smooth", type=int, default=25, help="window in evaluations (default 25)")
    parser.add_argument(
        "--median", action="store_true", help="median over runs instead of the mean"
    )
    parser.add_argument(
        "--metric", default="eval_return_mean", help="column of metrics.csv (default: the return)"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print maximum average returns instead: mean +- standard deviation over runs at the "
        "evaluation step with the highest mean, and of each run's own best",
    )
    parser.add_argument("--out", type=Path, default=Path("learning_curves"), help="files' stem")
    args = parser.parse_args()
    if args.smooth < 1:
        parser.error(f"--smooth must be at least 1, got {args.smooth}.")
    center = np.median if args.median else np.mean
    groups = group(read_runs(args.folders, args.metric))
    if args.table:
        print("\n".join(maximum_average(groups)))
        return

    table: list[tuple[Any, ...]] = []
    for (task, label), runs in groups.items():
        steps, raw = aligned(runs)
        values = smooth(raw, args.smooth)
        low, high = bootstrap(values, center)
        rows = zip(steps, center(values, axis=0), low, high, center(raw, axis=0), strict=True)
        table += [(task, label, step, len(runs), *numbers) for step, *numbers in rows]
    with args.out.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *table])
    quantity = "return" if args.metric == "eval_return_mean" else args.metric.replace("_", " ")
    what = f"{'median' if args.median else 'mean'} {quantity}, 95 % interval, window {args.smooth}"
    draw(table, what).savefig(args.out.with_suffix(".png"), dpi=120)
    print(f"wrote {args.out.with_suffix('.png')} and {args.out.with_suffix('.csv')}")


def draw(table: list[tuple[Any, ...]], what: str) -> Figure:
    """One panel a task."""
    tasks = list(dict.fromkeys(row[0] for row in table))
    figure = Figure(figsize=(5 * len(tasks), 3.8), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for label in dict.fromkeys(row[1] for row in table if row[0] == task):
            rows = [row[2:] for row in table if row[:2] == (task, label)]
            step, runs, middle, low, high, raw = map(np.array, zip(*rows, strict=True))
            (line,) = axes.plot(step, middle, label=f"{label} ({runs[0]} runs)")
            axes.plot(step, raw, color=line.get_color(), linewidth=0.6, alpha=0.6)
            axes.fill_between(step, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=task, xlabel="environment steps")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(what)
    return figure


if __name__ == "__main__":
    main()
