"""How the cost of a policy-optimisation step grows: python tests/benchmarks/scaling.py

Around the HalfCheetah sizes, one of batch, ensemble size, width and depth of the world model varies
at a time. Writes a CSV table and a plot of seconds a step.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.problem import SIZES, Size, Trainer

BASE = SIZES["halfcheetah"]


def variants() -> Iterator[tuple[str, int, Size]]:
    """What varies, its value, and the sizes with it."""
    for batch in (256, 512, 1024, 2048, 4096, 8192):
        yield "batch", batch, dataclasses.replace(BASE, batch=batch)
    for members in (1, 2, 4, 8, 16, 32):
        yield "ensemble size", members, dataclasses.replace(BASE, members=members)
    for width in (64, 128, 256, 512, 1024):
        yield "width", width, dataclasses.replace(BASE, model=(width,) * 4)
    for depth in (1, 2, 4, 6):
        yield "depth", depth, dataclasses.replace(BASE, model=(512,) * depth)


def seconds(sizes: list[Size], compile: bool, repeats: int) -> list[float]:
    """Least seconds of a step of each, the actor moving in every second one.

    The sizes take turns, so that a machine whose speed drifts is as kind to each.
    """
    trainers = [Trainer(size, compile) for size in tqdm(sizes, desc="build")]
    for trainer in tqdm(trainers, desc="warm up"):
        for _ in range(2):
            trainer.policy_steps()
    times: list[list[float]] = [[] for _ in sizes]
    for _ in tqdm(range(repeats), desc="measure"):
        for trainer, mine in zip(trainers, times, strict=True):
            start = time.perf_counter()
            trainer.policy_steps()
            mine.append((time.perf_counter() - start) / 2)
    return [min(mine) for mine in times]


def main() -> None:
    """Measures, writes the table, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("scaling"), help="files' stem")
    parser.add_argument("--compile", action="store_true", help="compile each variant")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of steps a variant")
    args = parser.parse_args()

    torch._dynamo.config.recompile_limit = 64  # one graph for each of the sizes
    whats, values, sizes = zip(*variants(), strict=True)
    costs = seconds(list(sizes), args.compile, args.repeats)
    rows = list(zip(whats, values, costs, strict=True))
    with args.out.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("what", "value", "seconds"), *rows])

    how = "compiled" if args.compile else "eager"
    names = dict.fromkeys(what for what, _, _ in rows)
    figure = Figure(figsize=(11, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        points = [(value, cost) for what, value, cost in rows if what == name]
        axes.plot(*zip(*points, strict=True), marker="o")
        axes.set(xscale="log", xlabel=name, xticks=[value for value, _ in points])
        axes.set_xticklabels([str(value) for value, _ in points])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set(yscale="log", ylabel="seconds a policy step")
    figure.suptitle(f"HalfCheetah sizes, {torch.get_num_threads()} threads, {how}")
    figure.savefig(args.out.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
