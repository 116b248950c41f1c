"""Prints ratios to the naive reference and fractions of the GEMM roofline, of one run."""

from __future__ import annotations

import statistics
import time

import pytest
import torch


def roofline() -> float:
    """FLOP/s of square float32 products of 1,024, the median of 50."""
    a, b = torch.randn(2, 1024, 1024)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / statistics.median(seconds)


@pytest.fixture(autouse=True)
def _roofline(benchmark):
    """Measured before and after every benchmark: the machine's speed drifts."""
    torch.compiler.reset()  # a process may compile one function for a few sizes only
    before = roofline()
    yield
    benchmark.extra_info["roofline"] = (before + roofline()) / 2


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    benchmarks = [bench for bench in session.benchmarks if bench.stats.data] if session else []
    say = terminalreporter.write_line
    speeds(say, [bench for bench in benchmarks if "what" in bench.extra_info])
    runs(say, [bench for bench in benchmarks if "parts" in bench.extra_info])


def speeds(say, benchmarks):
    """Milliseconds, against the naive reference, and of the roofline."""
    rows = {
        (info["what"], info["size"], info["how"]): (bench.stats.median / info["per_call"], info)
        for bench in benchmarks
        for info in [bench.extra_info]
    }
    if not rows:
        return
    peak = statistics.median(info["roofline"] for _, info in rows.values())
    say(f"float32 GEMM roofline {peak / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads")
    say(f"{'what':40}{'ms':>10}{'naive / this':>14}{'GFLOP':>8}{'of roofline':>13}")
    for (what, size, how), (seconds, info) in rows.items():
        naive = rows.get((what, size, "naive"))
        ratio = f"{naive[0] / seconds:.1f}" if naive else ""
        flop = info.get("flop")
        work = f"{flop / 1e9:.1f}" if flop else ""
        fraction = f"{flop / seconds / info['roofline']:.2f}" if flop else ""
        name = f"{what} {size} {how}"
        say(f"{name:40}{seconds * 1e3:10.2f}{ratio:>14}{work:>8}{fraction:>13}")


def runs(say, benchmarks):
    """Seconds of short runs, from the command to its end, by part."""
    if benchmarks:
        names = "".join(f"{part:>12}" for part in benchmarks[0].extra_info["parts"])
        say(f"{'seconds of a short run':40}{'all':>8}{names}")
    for bench in benchmarks:
        spent = "".join(f"{seconds:12.1f}" for seconds in bench.extra_info["parts"].values())
        say(f"{bench.extra_info['run']:40}{bench.stats.total:8.1f}{spent}")
