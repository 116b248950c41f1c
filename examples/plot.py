"""Learning curves of finished runs: one panel a task, one curve a setting, over its seeds.

python examples/plot.py runs/mage_td3              # all runs below, to learning_curves.png and .csv
python examples/plot.py runs --median --smooth 5 --out figure
python examples/plot.py runs --metric "model_*"    # how well the model foresees
python examples/plot.py runs --table               # maximum average returns, as the paper's Table 1
python examples/plot.py runs --aggregate           # over tasks: IQM and performance profiles
python examples/plot.py runs --time                # against minutes of wall-clock time
python examples/plot.py runs --peers returns.csv   # peers' published returns beneath, and a table

Runs that differ in nothing but the seed are one curve: the mean (or median) and its bootstrapped
95 % confidence interval over the seeds, smoothed by a uniform window as in the paper (appendix
D.2); the curve before smoothing is drawn thin beneath it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from plot_peers import Point, draw_peers, peer_table, read_peers

# What a run is not told apart by.
IGNORED = (
    "seed",
    "resume",
    "logger",
    "log_interval",
    "video",
    "device",
    "threads",
    "compile",
    "matmul_precision",
    "checkpoint_interval",
    "env_timeout",
)
TABLE = "kinds."  # the recipe's, of all kinds of task: what a run took of it is among its settings
COLUMNS = ("metric", "task", "setting", "step", "runs", "center", "low", "high", "raw")
RETURN = "eval_return_mean"
LEGEND_WIDTH = 68  # letters below a panel
Groups = dict[tuple[str, str], list["Run"]]


@dataclass
class Run:
    """A run: its folder, script, settings (as dotted keys) and rows of its ``metrics.csv``."""

    folder: Path
    script: str
    settings: dict[str, Any]
    rows: list[dict[str, str]]

    @property
    def task(self) -> str:
        """The environment's name."""
        return self.settings["env.name"]

    @property
    def steps(self) -> int:
        """Of its last evaluation."""
        return int(self.rows[-1]["step"])

    def values(self, metric: str) -> dict[int, float]:
        """The metric by step, where the run has it and it is finite."""
        found = {int(row["step"]): float(row[metric]) for row in self.rows if row.get(metric)}
        if bad := [step for step, value in found.items() if not np.isfinite(value)]:
            warn(f"{metric}: left out, not finite at steps {bad}: {self.folder}")
        return {step: value for step, value in found.items() if step not in bad}


def read_runs(folders: list[Path]) -> list[Run]:
    """Every run below ``folders``: a ``metrics.csv`` beside a ``config.yaml``."""
    runs = []
    for config in sorted({f.resolve() for folder in folders for f in folder.rglob("config.yaml")}):
        folder, rows = config.parent, []
        if (file := folder / "metrics.csv").exists():
            with file.open() as lines:
                rows = list(csv.DictReader(lines))
        elif not (folder / "checkpoints").exists():
            continue
        if not rows:
            warn(f"left out, no evaluation yet: {folder}")
            continue
        settings = flatten(yaml.safe_load(config.read_text()) or {})
        if "env.name" not in settings:
            raise SystemExit(f"{config} is not a run's: it has no env.name.")
        runs.append(Run(folder, settings.get("script", "unknown script"), settings, rows))
    if not runs:
        raise SystemExit(
            f"no runs below {', '.join(map(str, folders))}: a run has a metrics.csv beside a "
            "config.yaml."
        )
    return runs


def matching(runs: list[Run], patterns: list[str]) -> list[str]:
    """The metrics that fit a pattern and have a value in some run, in the files' order."""
    columns = dict.fromkeys(
        name for run in runs for row in run.rows for name, value in row.items() if value
    )
    found = [name for pattern in patterns for name in columns if fnmatch(name, pattern)]
    if not found:
        raise SystemExit(
            f"no run below the folders has a metric {' or '.join(patterns)}; the {len(runs)} runs "
            f"there have {list(columns)}."
        )
    return list(dict.fromkeys(found))


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def group(runs: list[Run]) -> Groups:
    """Runs by task, by script, and by the settings in which that script's runs of a task differ."""
    groups: Groups = defaultdict(list)
    scripts = split(runs, "script")
    for script, peers in scripts.items():
        keys = telling_apart(peers)
        for run in peers:
            differences = ", ".join(f"{key}={shown(run.settings[key])}" for key in keys)
            label = " ".join(filter(None, [script if len(scripts) > 1 else "", differences]))
            groups[run.task, label or script].append(run)
    return {key: without_twins(members) for key, members in groups.items()}


def without_twins(runs: list[Run]) -> list[Run]:
    """Of runs of one curve that have the same seed, the one with the most steps."""
    longest: dict[Any, Run] = {}
    for run in runs:
        seed = run.settings.get("seed", run.folder)
        kept = longest.setdefault(seed, run)
        if kept is not run:
            more = max(kept, run, key=lambda twin: twin.steps)
            less = run if more is kept else kept
            longest[seed] = more
            warn(
                f"left out, the same settings and seed {seed} as {more.folder}, which has "
                f"{more.steps} steps: {less.folder}, with {less.steps}"
            )
    return list(longest.values())


def telling_apart(runs: list[Run]) -> list[str]:
    """The settings in which runs of one task differ, whatever the task.

    A setting that some runs do not have, older ones, tells none apart.
    """
    tasks = split(runs, "task").values()
    return [
        key
        for key in runs[0].settings
        if key not in IGNORED
        and not key.startswith(TABLE)
        and all(key in run.settings for run in runs)
        and any(peer.settings[key] != peers[0].settings[key] for peers in tasks for peer in peers)
    ]


def split(runs: list[Run], by: str) -> dict[str, list[Run]]:
    """The runs of each script, or of each task, in their order."""
    parts: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        parts[getattr(run, by)].append(run)
    return parts


def shown(value: Any) -> str:
    """A setting's value in a label, where 1 and 1.0 are one."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def warn(message: str) -> None:
    """Says it beside what is written."""
    print(message, file=sys.stderr)


def aligned(runs: list[Run], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all runs with the metric have, ``[steps]``, and it, ``[runs, steps]``."""
    values = {run.folder: found for run in runs if (found := run.values(metric))}
    for run in runs:
        if values and run.folder not in values:
            warn(f"{metric}: left out, no value: {run.folder}")
    steps = sorted(set.intersection(*map(set, values.values()))) if values else []
    last = {folder: max(found) for folder, found in values.items()}
    for folder, step in last.items():
        if step == min(last.values()) < max(last.values()):
            warn(f"{metric}: cut at step {step}, where {folder} ends; others of its curve go on")
    return np.array(steps), np.array([[found[step] for step in steps] for found in values.values()])


def maximum_average(groups: Groups, metric: str) -> list[str]:
    """Table 1 (appendix B.5) as Markdown, unsmoothed; population standard deviations."""
    lines = [f"| task | setting | runs | step | maximum average {metric} | best of each |"]
    lines.append("|---" * 6 + "|")
    for (task, label), runs in groups.items():
        steps, values = aligned(runs, metric)
        if not len(steps):
            warn(f"left out, no common step with {metric}: {task}, {label}")
            continue
        top = values.mean(0).argmax()
        numbers = [f"{x.mean():.2f} +- {x.std():.2f}" for x in (values[:, top], values.max(1))]
        lines.append(
            " | ".join([f"| {task}", label, f"{len(values)}", f"{steps[top]}", *numbers]) + " |"
        )
    return lines


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Uniform window along the last axis, centred (an odd one), truncated at the ends."""
    before, after = window // 2, (window + 1) // 2
    size = values.shape[-1]
    parts = [values[..., max(0, i - before) : i + after].mean(-1) for i in range(size)]
    return np.stack(parts, -1)


def bootstrap(
    values: np.ndarray, center: Any, samples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap over the first axis (runs): the 95 % interval of ``center``."""
    index = np.random.default_rng(0).integers(len(values), size=(samples, len(values)))
    # A hundred steps at a time: all at once, long runs would take gigabytes.
    parts = [
        np.percentile(center(part[index], axis=1), [2.5, 97.5], axis=0)
        for part in np.split(values, range(100, values.shape[1], 100), axis=1)
    ]
    low, high = np.concatenate(parts, -1)
    return low, high


def final_scores(groups: Groups, metric: str, window: int) -> dict[str, np.ndarray]:
    """Each setting's scores at the last step that all of a task's runs have, ``[runs, tasks]``.

    Smoothed, and scaled so that a task's lowest and highest evaluation of any run are 0 and 1. Of
    runs more numerous on one task than on another, the first are taken.
    """
    tasks = list(dict.fromkeys(task for task, _ in groups))
    curves = {key: aligned(runs, metric) for key, runs in groups.items()}
    found = {}
    for task in tasks:
        mine = {key: curve for key, curve in curves.items() if key[0] == task}
        common = set.intersection(*(set(steps) for steps, _ in mine.values()))
        if not common:
            raise SystemExit(f"no step where {metric} is known in every run of {task}.")
        for key, (steps, values) in mine.items():
            if max(steps) > max(common):
                warn(f"{metric}: cut at step {max(common)}, where another setting ends: {key}")
            found[key] = values[:, np.isin(steps, list(common))]
    ranges = {
        task: np.concatenate([values.ravel() for (of, _), values in found.items() if of == task])
        for task in tasks
    }
    scores = {}
    for label in dict.fromkeys(label for _, label in groups):
        if not all((task, label) in groups for task in tasks):
            raise SystemExit(f"setting {label!r} was not run on every one of {tasks}.")
        count = min(len(found[task, label]) for task in tasks)
        columns = []
        for task in tasks:
            low, high = ranges[task].min(), ranges[task].max()
            final = smooth(found[task, label], window)[:count, -1]
            columns.append((final - low) / max(high - low, np.finfo(float).tiny))
        scores[label] = np.stack(columns, 1)
    return scores


def draw_aggregates(scores: dict[str, np.ndarray]) -> tuple[Figure, list[tuple[Any, ...]]]:
    """Aggregate metrics with stratified bootstrap intervals, and performance profiles.

    By rliable (Agarwal et al., 2021, arXiv:2108.13264).
    """
    try:
        from rliable import library, metrics, plot_utils
    except ImportError as error:
        raise SystemExit(
            f'--aggregate needs rliable ({error}): pip install -e ".[aggregate]".'
        ) from error
    names = ("median", "IQM", "mean", "optimality gap")
    functions = (
        metrics.aggregate_median,
        metrics.aggregate_iqm,
        metrics.aggregate_mean,
        metrics.aggregate_optimality_gap,
    )
    points, intervals = library.get_interval_estimates(
        scores, lambda x: np.array([function(x) for function in functions]), reps=2000
    )
    thresholds = np.linspace(0, 1, 101)
    profiles, bands = library.create_performance_profile(scores, thresholds, reps=2000)
    figure = Figure(figsize=(12, 4), layout="constrained")
    bars, profile = figure.subplots(1, 2)
    positions = np.arange(len(names))
    table: list[tuple[Any, ...]] = []
    for turn, label in enumerate(scores):
        low, high = intervals[label]
        bars.errorbar(
            positions + 0.15 * turn,
            points[label],
            yerr=[points[label] - low, high - points[label]],
            fmt="o",
            capsize=3,
            label=label,
        )
        table += [(label, *row) for row in zip(names, points[label], low, high, strict=True)]
    bars.set(xticks=positions, xticklabels=names, ylabel="normalised return")
    bars.legend(fontsize="small")
    plot_utils.plot_performance_profiles(
        profiles,
        thresholds,
        performance_profile_cis=bands,
        colors={label: f"C{turn}" for turn, label in enumerate(scores)},
        xlabel="normalised return",
        ax=profile,
    )
    return figure, table


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
        "--metric",
        nargs="+",
        default=[RETURN],
        help="columns of metrics.csv, or patterns of them (default: the return)",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print maximum average returns instead: mean +- standard deviation over runs at the "
        "evaluation step with the highest mean, and of each run's own best",
    )
    parser.add_argument(
        "--aggregate",
        action="store_true",
        help="over tasks instead: IQM, median, mean, optimality gap and performance profiles of "
        "the final returns, by rliable",
    )
    parser.add_argument("--log", action="store_true", help="logarithmic vertical axes")
    parser.add_argument(
        "--time",
        action="store_true",
        help="against wall-clock time: at each step the mean (or median) of the runs' minutes",
    )
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FILE",
        help="draw the published returns that a CSV (task, method, step, return_mean, return_std, "
        "source) has of the same tasks and steps, and print each method's last",
    )
    parser.add_argument(
        "--out",
        type=lambda name: Path(name.removesuffix(".png").removesuffix(".csv")),
        default=Path("learning_curves"),
        help="the files, less their endings",
    )
    args = parser.parse_args()
    if args.smooth < 1:
        parser.error(f"--smooth must be at least 1, got {args.smooth}.")
    drawn = args.median or args.log or args.time or args.peers  # what only curves take
    if args.table and (args.aggregate or drawn):
        parser.error("--table takes neither --aggregate, --median, --log, --time nor --peers.")
    if args.aggregate and (drawn or len(args.metric) > 1):
        parser.error(
            "--aggregate takes one --metric, and neither --median, --log, --time nor --peers."
        )
    if args.time and args.peers:
        parser.error("--time takes no --peers: how long theirs took is not known.")
    if args.peers and not args.peers.is_file():
        parser.error(f"no such file: {args.peers}.")
    if missing := [str(folder) for folder in args.folders if not folder.is_dir()]:
        parser.error(f"no such folder: {', '.join(missing)}.")
    center = np.median if args.median else np.mean
    runs = read_runs(args.folders)
    metrics = matching(runs, args.metric)
    if args.peers and RETURN not in metrics:
        raise SystemExit(f"--peers draws under {RETURN}, which is not among the metrics {metrics}.")
    groups = group(runs)
    peers: list[Point] = []
    if args.table:
        print("\n\n".join("\n".join(maximum_average(groups, name)) for name in metrics))
        return
    if args.aggregate:
        columns: tuple[str, ...] = ("setting", "metric", "value", "low", "high")
        figure, table = draw_aggregates(final_scores(groups, metrics[0], args.smooth))
    else:
        axis = "minutes" if args.time else "step"
        columns = tuple(axis if column == "step" else column for column in COLUMNS)
        table = [
            row
            for name in metrics
            for row in curves(groups, name, args.smooth, center, time=args.time)
        ]
        which = "median" if args.median else "mean"
        what = f"{which}, bootstrapped 95 % interval, window {args.smooth}"
        if args.peers:
            returns = [(task, step) for metric, task, _, step, *_ in table if metric == RETURN]
            ends = {task: max(at for of, at in returns if of == task) for task, _ in returns}
            peers = read_peers(args.peers, ends)
            found = {point.task for point in peers}
            for task in [task for task in ends if task not in found]:
                warn(f"{args.peers} has nothing of {task} up to step {ends[task]}")
            what += "; grey: published mean, standard deviation"
        figure = draw(table, what, log=args.log, time=args.time, peers=peers)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{args.out}.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *table])
    figure.savefig(f"{args.out}.png", dpi=120)
    print(f"wrote {args.out}.png and {args.out}.csv")
    if args.peers:
        print("", *peer_table(peers), sep="\n")


def curves(
    groups: Groups, metric: str, window: int, center: Any, *, time: bool = False
) -> list[tuple[Any, ...]]:
    """The rows of the table, as :data:`COLUMNS` names them, with minutes for steps if ``time``."""
    table: list[tuple[Any, ...]] = []
    for (task, label), runs in groups.items():
        steps, raw = aligned(runs, metric)
        if not len(steps):
            warn(f"left out, no common step with {metric}: {task}, {label}")
            continue
        if window > len(steps) > 1:
            warn(
                f"{metric}: a window of {window} over {len(steps)} evaluations, near their mean "
                f"everywhere; --smooth 1 draws them: {task}, {label}"
            )
        values = smooth(raw, window)
        low, high = bootstrap(values, center)
        axis = center(minutes(runs, metric, steps), axis=0) if time else steps
        rows = zip(axis, center(values, axis=0), low, high, center(raw, axis=0), strict=True)
        table += [(metric, task, label, where, len(raw), *numbers) for where, *numbers in rows]
    if not table:
        raise SystemExit(f"no group of runs has a step in common where {metric} is known.")
    return table


def minutes(runs: list[Run], metric: str, steps: np.ndarray) -> np.ndarray:
    """The wall-clock time of each run with the metric at the steps, ``[runs, steps]``.

    Raises:
        SystemExit: a run has no time there.
    """
    times = []
    for run in runs:
        rows = [row for row in run.rows if row.get(metric) and np.isfinite(float(row[metric]))]
        if not rows:
            continue
        clock = {int(row["step"]): row.get("wall_time", "") for row in rows}
        if missing := [int(step) for step in steps if not clock[step]]:
            raise SystemExit(
                f"--time needs the column wall_time, which is empty at steps {missing}: "
                f"{run.folder}; leave --time out, or that run."
            )
        times.append([float(clock[step]) / 60 for step in steps])
    return np.array(times)


def draw(
    table: list[tuple[Any, ...]],
    what: str,
    *,
    log: bool = False,
    time: bool = False,
    peers: Sequence[Point] = (),
) -> Figure:
    """A row of panels for each metric, a column for each task; peers under the returns."""
    metrics, tasks = (list(dict.fromkeys(column)) for column in list(zip(*table, strict=True))[:2])
    labels = dict.fromkeys(row[2] for row in table)
    lines = sum(len(wrap(f"{label} (10 runs)", LEGEND_WIDTH)) for label in labels)
    lines += len({point.method for point in peers})
    size = (5 * len(tasks), (3.6 + 0.16 * lines) * len(metrics))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(tasks), squeeze=False)
    colors = {label: f"C{turn}" for turn, label in enumerate(labels)}
    for metric, panels_of_row in zip(metrics, panels, strict=True):
        for task, axes in zip(tasks, panels_of_row, strict=True):
            mine = [row[2:] for row in table if row[:2] == (metric, task)]
            if not mine:
                axes.set_axis_off()
                continue
            for label in dict.fromkeys(row[0] for row in mine):
                columns = zip(*[row[1:] for row in mine if row[0] == label], strict=True)
                step, runs, middle, low, high, raw = map(np.array, columns)
                color = colors[label]
                axes.plot(step, raw, color=color, linewidth=0.6, alpha=0.6)
                entry = "\n".join(wrap(f"{label} ({runs[0]} runs)", LEGEND_WIDTH))
                axes.plot(step, middle, color=color, label=entry)
                axes.fill_between(step, low, high, color=color, alpha=0.2, linewidth=0)
            if metric == RETURN:
                draw_peers(axes, task, peers)
            unit = "wall-clock minutes" if time else "environment steps"
            axes.set(title=task, xlabel=unit, yscale="log" if log else "linear")
            axes.legend(
                fontsize="x-small",
                loc="upper center",
                bbox_to_anchor=(0.5, -0.15),
                handlelength=4 if peers else None,  # long enough to tell dashes apart
            )
            axes.grid(alpha=0.3)
        name = "return" if metric == RETURN else metric.replace("_", " ")
        panels_of_row[0].set_ylabel(name)
    figure.suptitle(what, fontsize="small", wrap=True)
    figure.draw_without_rendering()  # lays it out: a long legend needs a second time, on saving
    return figure


if __name__ == "__main__":
    main()
