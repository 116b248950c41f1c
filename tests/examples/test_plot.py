"""plot.py on run folders with known numbers."""

from __future__ import annotations

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "examples" / "plot.py"


@pytest.fixture
def module():
    return runpy.run_path(str(SCRIPT))


def write_run(path, seed, returns, task="Pendulum-v1", lmbda=0.2, script=None, seconds=None):
    path.mkdir(parents=True)
    config = {"seed": seed, "env": {"name": task}, "loss": {"lmbda": lmbda}}
    if script:
        config["script"] = script
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    times = seconds or [1] * len(returns)
    lines = [
        f"{250 * (i + 1)},{value},0,{time}"
        for i, (value, time) in enumerate(zip(returns, times, strict=True))
    ]
    header = "step,eval_return_mean,eval_return_std,wall_time"
    (path / "metrics.csv").write_text("\n".join([header, *lines, ""]))


def plot(monkeypatch, tmp_path, *args):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with (tmp_path / "learning_curves.csv").open() as file:
        return list(csv.DictReader(file))


def test_curves_by_task_and_setting(monkeypatch, tmp_path, capsys):
    write_run(tmp_path / "runs/a", 0, [0, 10, 20])
    write_run(tmp_path / "runs/b", 1, [10, 20, 30, 99])  # one evaluation more: left out
    write_run(tmp_path / "runs/c", 0, [5, 5, 5], lmbda=1.0)
    write_run(tmp_path / "runs/e", 1, [5, 5, 5], lmbda=1)
    write_run(tmp_path / "runs/d", 0, [1, 2, 3], task="CartPole")
    rows = plot(monkeypatch, tmp_path, "runs", "--smooth", "1")
    groups = {(row["task"], row["setting"]) for row in rows}
    assert groups == {
        ("Pendulum-v1", "loss.lmbda=0.2"),
        ("Pendulum-v1", "loss.lmbda=1"),
        ("CartPole", "loss.lmbda=0.2"),  # what tells runs of one task apart names those of all
    }
    first = [
        row for row in rows if (row["task"], row["setting"]) == ("Pendulum-v1", "loss.lmbda=0.2")
    ]
    assert [int(row["step"]) for row in first] == [250, 500, 750]
    assert [float(row["center"]) for row in first] == [5, 15, 25]
    assert [float(row["low"]) for row in first] == [0, 10, 20], "two runs: the interval is both"
    assert [float(row["high"]) for row in first] == [10, 20, 30]
    assert {row["runs"] for row in first} == {"2"}
    assert (tmp_path / "learning_curves.png").read_bytes()[1:4] == b"PNG"
    said = capsys.readouterr().err
    assert said == (
        f"eval_return_mean: cut at step 750, where {tmp_path}/runs/a ends; others of its curve go "
        "on\n"
    )


def test_a_run_without_an_evaluation_is_said(monkeypatch, tmp_path, capsys):
    """Whether its file has no rows or is not there yet: its seed is missing from the mean."""
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write_run(tmp_path / "runs" / name, seed, [seed])
    (tmp_path / "runs/b/metrics.csv").write_text("")
    (tmp_path / "runs/c/metrics.csv").unlink()
    (tmp_path / "runs/c/checkpoints").mkdir()
    (row,) = plot(monkeypatch, tmp_path, "runs")
    assert row["runs"] == "1"
    said = capsys.readouterr().err
    for name in ("b", "c"):
        assert f"left out, no evaluation yet: {tmp_path}/runs/{name}\n" in said


def test_a_window_longer_than_the_curve_is_said(monkeypatch, tmp_path, capsys):
    write_run(tmp_path / "runs/a", 0, [1, 2, 3])
    plot(monkeypatch, tmp_path, "runs")
    assert "a window of 25 over 3 evaluations" in capsys.readouterr().err
    plot(monkeypatch, tmp_path, "runs", "--smooth", "3")
    assert not capsys.readouterr().err


def test_folders_that_hold_no_runs_are_named(monkeypatch, tmp_path, capsys):
    write_run(tmp_path / "runs/a", 0, [1])
    with pytest.raises(SystemExit):
        plot(monkeypatch, tmp_path, "runs", "nowhere")
    assert "no such folder: nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no runs below empty: a run has a metrics.csv beside a"):
        plot(monkeypatch, tmp_path, "empty")
    (tmp_path / "runs/a/config.yaml").write_text("")
    with pytest.raises(SystemExit, match="runs/a/config.yaml is not a run's: it has no env.name"):
        plot(monkeypatch, tmp_path, "runs")


def test_of_twins_the_longest_counts(monkeypatch, tmp_path, capsys):
    """And a folder that is named twice is none."""
    for name, seed, returns in (("a", 0, [0]), ("b", 0, [7, 9]), ("c", 1, [3, 5]), ("d", 0, [1])):
        write_run(tmp_path / "runs" / name, seed, returns)
    rows = plot(monkeypatch, tmp_path, "runs", str(tmp_path / "runs" / "b"), "--smooth", "1")
    assert [(row["runs"], float(row["center"])) for row in rows] == [("2", 5), ("2", 7)]
    said = capsys.readouterr().err.splitlines()
    runs = tmp_path / "runs"
    assert said == [
        f"left out, the same settings and seed 0 as {runs}/b, which has 500 steps: {runs}/{name}, "
        "with 250"
        for name in "ad"
    ]


def test_files_are_named_as_asked(monkeypatch, tmp_path):
    write_run(tmp_path / "runs/a", 0, [1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "runs", "--out", "new/lambda_0.05.png"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        "lambda_0.05.csv",
        "lambda_0.05.png",
    }


def test_aggregates_need_a_step_in_common(module, tmp_path):
    write_run(tmp_path / "runs/a", 0, [1, 2])
    write_run(tmp_path / "runs/b", 1, [1])
    table = tmp_path / "runs/b/metrics.csv"
    table.write_text(table.read_text().replace("250,", "300,"))
    groups = module["group"](module["read_runs"]([tmp_path / "runs"]))
    with pytest.raises(SystemExit, match=r"no step where eval_return_mean is known in every run"):
        module["final_scores"](groups, "eval_return_mean", 1)


def test_aggregates_are_of_one_step(module, tmp_path, capsys):
    """A sweep in progress: the setting that is further is read where the other ends."""
    write_run(tmp_path / "runs/a", 0, [0, 10, 99], lmbda=0.2)
    write_run(tmp_path / "runs/b", 0, [0, 5], lmbda=1.0)
    groups = module["group"](module["read_runs"]([tmp_path / "runs"]))
    scores = module["final_scores"](groups, "eval_return_mean", 1)
    assert {label: score.tolist() for label, score in scores.items()} == {
        "loss.lmbda=0.2": [[1.0]],
        "loss.lmbda=1": [[0.5]],
    }
    assert "cut at step 500, where another setting ends" in capsys.readouterr().err


def test_what_is_not_finite_is_left_out(monkeypatch, tmp_path, capsys):
    write_run(tmp_path / "runs/a", 0, [1, "nan", 3])
    rows = plot(monkeypatch, tmp_path, "runs", "--smooth", "1")
    assert [(row["step"], float(row["center"])) for row in rows] == [("250", 1), ("750", 3)]
    assert "left out, not finite at steps [500]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--table", "--median"],
        ["--table", "--time"],
        ["--table", "--peers", "peers.csv"],
        ["--aggregate", "--log"],
        ["--aggregate", "--time"],
        ["--aggregate", "--peers", "peers.csv"],
        ["--time", "--peers", "peers.csv"],
    ],
)
def test_options_that_do_not_go_together(monkeypatch, tmp_path, capsys, options):
    write_run(tmp_path / "runs/a", 0, [1])
    with pytest.raises(SystemExit):
        plot(monkeypatch, tmp_path, "runs", *options)
    assert f"{options[0]} takes" in capsys.readouterr().err


def test_scripts_are_told_apart(monkeypatch, tmp_path):
    """By name, and by the settings in which each one's own runs differ."""
    write_run(tmp_path / "runs/a", 0, [0], script="mage_td3", lmbda=0.2)
    write_run(tmp_path / "runs/b", 0, [0], script="mage_td3", lmbda=1.0)
    write_run(tmp_path / "runs/c", 0, [0], script="td3", lmbda=7.0)
    settings = [row["setting"] for row in plot(monkeypatch, tmp_path, "runs")]
    assert settings == ["mage_td3 loss.lmbda=0.2", "mage_td3 loss.lmbda=1", "td3"]


def test_metrics_that_some_runs_lack(monkeypatch, tmp_path, capsys):
    """An empty column is no metric; runs without one keep their label; no common step is said."""
    for name, lmbda, numbers in (
        ("a", 0.2, ["1", ""]),
        ("b", 0.2, ["", "2"]),
        ("c", 1.0, ["", ""]),
    ):
        write_run(tmp_path / "runs" / name, ord(name), [0, 0], lmbda=lmbda)
        table = tmp_path / "runs" / name / "metrics.csv"
        header, *rows = table.read_text().splitlines()
        rows = [f"{row},{number}," for row, number in zip(rows, numbers, strict=True)]
        table.write_text("\n".join([f"{header},td_error,gap_error", *rows, ""]))
    with pytest.raises(SystemExit, match="no group of runs has a step in common where td_error"):
        plot(monkeypatch, tmp_path, "runs", "--metric", "*_error")
    assert "no common step with td_error: Pendulum-v1, loss.lmbda=0.2" in capsys.readouterr().err
    (tmp_path / "runs" / "b" / "metrics.csv").unlink()
    rows = plot(monkeypatch, tmp_path, "runs", "--metric", "td_error", "wall_time")
    assert {(row["metric"], row["setting"]) for row in rows} == {
        ("td_error", "loss.lmbda=0.2"),
        ("wall_time", "loss.lmbda=0.2"),
        ("wall_time", "loss.lmbda=1"),
    }


def test_a_setting_that_older_runs_lack_tells_none_apart(monkeypatch, tmp_path):
    write_run(tmp_path / "runs/a", 0, [1])
    write_run(tmp_path / "runs/b", 1, [3])
    config = tmp_path / "runs/b/config.yaml"
    config.write_text(config.read_text() + "new_setting: 1\n")
    (row,) = plot(monkeypatch, tmp_path, "runs")
    assert (row["setting"], row["runs"], row["center"]) == ("unknown script", "2", "2.0")


def test_the_recipes_table_for_other_tasks_tells_no_runs_apart(monkeypatch, tmp_path):
    for name, seed, steps in (("a", 0, 1000), ("b", 1, 3000)):
        write_run(tmp_path / "runs" / name, seed, [seed])
        config = tmp_path / "runs" / name / "config.yaml"
        table = {"kinds": {"balance": {"total_steps": steps}}}
        config.write_text(config.read_text() + yaml.safe_dump(table))
    (row,) = plot(monkeypatch, tmp_path, "runs")
    assert (row["setting"], row["runs"]) == ("unknown script", "2")


def test_a_row_of_panels_for_each_metric(monkeypatch, tmp_path):
    write_run(tmp_path / "runs/a", 0, [3])
    rows = plot(monkeypatch, tmp_path, "runs", "--metric", "eval_*_mean", "wall_time")
    assert [(row["metric"], row["center"]) for row in rows] == [
        ("eval_return_mean", "3.0"),
        ("wall_time", "1.0"),
    ]


def test_aggregates_over_tasks(tmp_path):
    """Two tasks of ranges 0 to 10 and 0 to 1000; all of lambda 0.2 reach the top, none of 1 do."""
    pytest.importorskip("rliable")
    # In a process of its own: what rliable imports keeps hold of the captured stderr.
    for lmbda, share in ((0.2, 1.0), (1.0, 0.5)):
        for task, top in (("A", 10), ("B", 1000)):
            for seed in range(3):
                folder = tmp_path / "runs" / f"{task}{lmbda}{seed}"
                write_run(folder, seed, [0, share * top], task, lmbda)
    command = [sys.executable, str(SCRIPT), "runs", "--aggregate", "--smooth", "1"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with (tmp_path / "learning_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["setting"], row["metric"]): float(row["value"]) for row in rows}
    for metric in ("median", "IQM", "mean"):
        assert found["loss.lmbda=0.2", metric] == 1
        assert found["loss.lmbda=1", metric] == 0.5
    assert found["loss.lmbda=1", "optimality gap"] == 0.5


def test_median(monkeypatch, tmp_path):
    for seed, value in enumerate((0, 1, 100)):
        write_run(tmp_path / f"runs/{seed}", seed, [value])
    (row,) = plot(monkeypatch, tmp_path, "runs", "--median")
    assert float(row["center"]) == 1


def test_window_is_centred_and_truncated(module):
    values = np.array([[0.0, 3.0, 6.0, 9.0, 30.0]])
    expected = [[1.5, 3.0, 6.0, 15.0, 19.5]]
    np.testing.assert_allclose(module["smooth"](values, 3), expected)
    np.testing.assert_allclose(module["smooth"](values, 1), values)
    np.testing.assert_allclose(module["smooth"](values, 2), [[0.0, 1.5, 4.5, 7.5, 19.5]])


def test_bootstrap_covers_the_mean_of_a_normal_sample(module):
    """95 % intervals of 400 samples of 12: the percentile bootstrap covers 0.88 to 0.97."""
    values = np.random.default_rng(1).normal(size=(12, 400))
    low, high = module["bootstrap"](values, np.mean)
    assert 0.87 < ((low < 0) & (high > 0)).mean() < 0.98


def test_bootstrap_of_long_runs_is_that_of_each_step(module):
    values = np.random.default_rng(1).normal(size=(4, 230))
    low, high = module["bootstrap"](values, np.mean)
    assert low.shape == high.shape == (230,)
    for step in (0, 99, 100, 229):
        alone = module["bootstrap"](values[:, [step]], np.mean)
        np.testing.assert_array_equal(np.concatenate(alone), [low[step], high[step]])


def test_logarithmic_axes(module):
    row = ("gradient_error", "A", "mage_sac", 1, 1, 10.0, 9.0, 11.0, 10.0)
    for log, scale in ((True, "log"), (False, "linear")):
        (axes,) = module["draw"]([row], "", log=log).axes
        assert axes.get_yscale() == scale


def test_another_column_may_be_drawn(monkeypatch, tmp_path):
    for name, numbers in (("a", ["", "1", "2"]), ("b", ["", "3", "4"])):
        write_run(tmp_path / "runs" / name, ord(name), [0, 0, 0])
        table = tmp_path / "runs" / name / "metrics.csv"
        header, *rows = table.read_text().splitlines()
        rows = [f"{row},{number}" for row, number in zip(rows, numbers, strict=True)]
        table.write_text("\n".join([f"{header},action_gradient", *rows, ""]))
    drawn = plot(monkeypatch, tmp_path, "runs", "--metric", "action_gradient", "--smooth", "1")
    assert [(row["step"], row["center"]) for row in drawn] == [("500", "2.0"), ("750", "3.0")]
    with pytest.raises(SystemExit, match=r"has a metric nothing; the 2 runs there have \['step'"):
        plot(monkeypatch, tmp_path, "runs", "--metric", "nothing")


def test_table_of_maximum_average_returns(monkeypatch, tmp_path, capsys):
    write_run(tmp_path / "runs/a", 0, [0, 10, 20])
    write_run(tmp_path / "runs/b", 1, [50, 20, 30])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "runs", "--table"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    row = capsys.readouterr().out.splitlines()[-1]
    # Means 25, 15, 25: the first; each run's best: 20 and 50.
    assert row == ("| Pendulum-v1 | unknown script | 2 | 250 | 25.00 +- 25.00 | 35.00 +- 15.00 |")


# ---------------------------------------------------------------- wall-clock time


def test_curves_against_time(monkeypatch, tmp_path):
    """At a step, the mean of its runs' minutes, of those runs that have the metric."""
    write_run(tmp_path / "runs/a", 0, [0, 10], seconds=[60, 120])
    write_run(tmp_path / "runs/b", 1, [10, 20], seconds=[180, 600])
    write_run(tmp_path / "runs/c", 2, ["nan", ""], seconds=[9999, 9999])
    rows = plot(monkeypatch, tmp_path, "runs", "--time", "--smooth", "1")
    assert "step" not in rows[0]
    assert [(float(row["minutes"]), float(row["center"])) for row in rows] == [(2, 5), (6, 15)]
    rows = plot(monkeypatch, tmp_path, "runs", "--time", "--median", "--smooth", "1")
    assert [float(row["minutes"]) for row in rows] == [2, 6]


def test_a_run_without_times_is_named(monkeypatch, tmp_path):
    write_run(tmp_path / "runs/a", 0, [0, 10], seconds=[60, ""])
    with pytest.raises(SystemExit, match=r"wall_time, which is empty at steps \[500\]: .*runs/a"):
        plot(monkeypatch, tmp_path, "runs", "--time")


def test_axes_say_what_they_measure(module):
    row = ("eval_return_mean", "A", "mage_sac", 1, 1, 10.0, 9.0, 11.0, 10.0)
    for time, label in ((True, "wall-clock minutes"), (False, "environment steps")):
        (axes,) = module["draw"]([row], "", time=time).axes
        assert axes.get_xlabel() == label


# ---------------------------------------------------------------- peers

PEERS = """task,method,step,return_mean,return_std,seeds,source
Hopper,SAC,1000,30,1,5,somewhere
Pendulum,SAC,750,-200,50,5,somewhere
Pendulum,SAC,250,-900,100.5,5,somewhere
Pendulum,SAC,1000,-150,50,5,beyond the axis
Pendulum,MBPO,500,-300,,4,"a figure, read off"
CartPole,SAC,250,100,10,5,somewhere
InvertedPendulum,SAC,250,1000,0,5,another task
"""


@pytest.fixture
def peers(tmp_path):
    file = tmp_path / "peers.csv"
    file.write_text(PEERS)
    return file


def test_peers_are_read_within_the_runs_axis(module, peers):
    cartpole = "torchrl_mage/ContinuousCartPole-v1"
    points = module["read_peers"](peers, {"Pendulum-v1": 750, cartpole: 250})
    assert [tuple(point) for point in points] == [
        ("Pendulum-v1", "MBPO", 500, -300, 0, "a figure, read off"),
        ("Pendulum-v1", "SAC", 250, -900, 100.5, "somewhere"),
        ("Pendulum-v1", "SAC", 750, -200, 50, "somewhere"),
        (cartpole, "SAC", 250, 100, 10, "somewhere"),
    ]


def test_peers_are_drawn_beneath(module, peers):
    """A dashed grey line a method with its spread, in the panel of the returns alone."""
    ours = [
        (metric, "Pendulum-v1", "mage_sac", step, 1, 10.0, 9.0, 11.0, 10.0)
        for metric in ("eval_return_mean", "wall_time")
        for step in (250, 750)
    ]
    points = module["read_peers"](peers, {"Pendulum-v1": 750})
    returns, other = module["draw"](ours, "", peers=points).axes
    lines = {line.get_label(): line for line in returns.lines}
    sac = lines["SAC"]
    np.testing.assert_array_equal(sac.get_xydata(), [[250, -900], [750, -200]])
    assert sac.get_zorder() < lines["mage_sac (1 runs)"].get_zorder()
    assert len({lines[name].get_linestyle() for name in ("SAC", "MBPO")}) == 2
    bands = [band.get_paths()[0].vertices for band in returns.collections]
    assert any({(250, -1000.5), (250, -799.5)} <= set(map(tuple, band)) for band in bands)
    assert "SAC" not in {line.get_label() for line in other.lines}


def test_peers_table_beneath_the_figures_name(monkeypatch, tmp_path, peers, capsys):
    write_run(tmp_path / "runs/a", 0, [1, 2, 3])
    rows = plot(monkeypatch, tmp_path, "runs", "--smooth", "1", "--peers", str(peers))
    assert [row["center"] for row in rows] == ["1.0", "2.0", "3.0"], "ours alone"
    assert capsys.readouterr().out.splitlines() == [
        "wrote learning_curves.png and learning_curves.csv",
        "",
        "| task | method | step | return | spread | source |",
        "|---|---|---|---|---|---|",
        "| Pendulum-v1 | MBPO | 500 | -300.00 |  | a figure, read off |",
        "| Pendulum-v1 | SAC | 750 | -200.00 | 50.00 | somewhere |",
    ]


def test_a_task_without_peers_is_said(monkeypatch, tmp_path, peers, capsys):
    write_run(tmp_path / "runs/a", 0, [1, 2], task="Hopper-v5")
    plot(monkeypatch, tmp_path, "runs", "--smooth", "1", "--peers", str(peers))
    assert f"{peers} has nothing of Hopper-v5 up to step 500" in capsys.readouterr().err


def test_peers_files_that_do_not_fit_are_named(monkeypatch, tmp_path, peers, capsys):
    write_run(tmp_path / "runs/a", 0, [1])
    with pytest.raises(SystemExit):
        plot(monkeypatch, tmp_path, "runs", "--peers", "nowhere.csv")
    assert "no such file: nowhere.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="draws under eval_return_mean, which is not among"):
        plot(monkeypatch, tmp_path, "runs", "--metric", "wall_time", "--peers", "peers.csv")
    peers.write_text(PEERS.replace("-300", "high"))
    with pytest.raises(SystemExit, match=r"peers\.csv, line 6: .*'high'; step, return_mean"):
        plot(monkeypatch, tmp_path, "runs", "--peers", "peers.csv")
    peers.write_text(PEERS.replace("return_std,", ""))
    with pytest.raises(SystemExit, match=r"peers\.csv has no column return_std: .*'seeds'"):
        plot(monkeypatch, tmp_path, "runs", "--peers", "peers.csv")
