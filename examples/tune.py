"""Tunes a script's settings with Optuna: a trial is a run, stopped early where it falls behind.

python examples/tune.py                       # config/tune/pendulum.yaml
python examples/tune.py trials=20             # goes on to 20 trials in all
python examples/tune.py --config-name NAME    # another search: config/tune/NAME.yaml

A trial's value is the mean return of all its evaluations, so that what learns sooner is better. The
study is a SQLite file beside its runs; one that was stopped goes on with the same command, the run
that was under way from its checkpoint. Needs the extra ``sweep``.
"""

from __future__ import annotations

import csv
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from torchrl_mage.trainers import EXIT_INTERRUPTED, RunLock, checkpoints, resuming


@hydra.main(config_path="config/tune", config_name="pendulum", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs what is left of the study's trials; prints all of them, the best first."""
    folder = Path(cfg.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # the run under way is stopped at a whole step
        signal.signal(number, lambda *_: sys.exit(EXIT_INTERRUPTED))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with RunLock(folder):
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name="study",
            direction="maximize",
            load_if_exists=True,
        )
        # A seed of its own each time, or a study that goes on would draw its first trials again.
        study.sampler = optuna.samplers.TPESampler(seed=cfg.seed + len(study.trials))
        stopped = [Trial(study, t._trial_id) for t in study.trials if not t.state.is_finished()]
        done = sum(trial.state.is_finished() for trial in study.trials)
        with tqdm(total=cfg.trials, initial=done, unit="trial", dynamic_ncols=True) as bar:
            for _ in range(done, cfg.trials):
                trial = stopped.pop(0) if stopped else study.ask()
                study.tell(trial, **outcome(trial, cfg, folder, bar))
                bar.update()
    print("\n".join(table(study.trials)))
    if done := [trial for trial in study.trials if trial.state == TrialState.COMPLETE]:
        best = max(done, key=lambda trial: trial.value)
        settings = [f"{name}={value}" for name, value in best.params.items()]
        print(f"best: python examples/{cfg.script}.py {shlex.join([*cfg.overrides, *settings])}")


def outcome(trial: Trial, cfg: DictConfig, folder: Path, bar: tqdm) -> dict[str, Any]:
    """Trains a trial's run to its end, or to where it is pruned; how it ended, for Optuna."""
    path = folder / f"trial_{trial.number:03d}"
    settings = [f"{name}={suggested(trial, name, space)}" for name, space in cfg.space.items()]
    where = shlex.split(resuming(path)) if checkpoints(path) else [f"hydra.run.dir={path}"]
    script = Path(__file__).with_name(f"{cfg.script}.py")
    log = folder / f"trial_{trial.number:03d}.log"
    with log.open("a") as file:
        run = subprocess.Popen(
            [sys.executable, str(script), *cfg.overrides, *settings, *where],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    reported = set(trial.study.trials[trial.number].intermediate_values)  # before it was stopped
    try:
        ended = False
        while not ended:
            ended = run.poll() is not None  # asked before its last row is read
            for step, value in means(path / "metrics.csv"):
                if step in reported:
                    continue
                reported.add(step)
                trial.report(value, step)
                bar.set_postfix_str(f"trial {trial.number}: {value:.5g} at step {step}")
                if step >= cfg.prune.after_steps and behind(
                    trial, value, step, cfg.prune.after_trials
                ):
                    return {"state": TrialState.PRUNED}
            time.sleep(0.2)
    finally:
        run.terminate()
        run.wait()
    if run.returncode == EXIT_INTERRUPTED:
        sys.exit(EXIT_INTERRUPTED)
    if run.returncode:
        bar.write(f"trial {trial.number} failed with {settings}: {log} says why")
        return {"state": TrialState.FAIL}
    return {"values": value}


def behind(trial: Trial, value: float, step: int, after_trials: int) -> bool:
    """Whether a trial is below the median of the others at a step, if enough have come to it.

    Optuna's own pruners ask for the best value so far, which for a mean is an early, lucky one.
    """
    others = [t.intermediate_values for t in trial.study.trials if t.number != trial.number]
    values = [known[step] for known in others if step in known]
    return len(values) >= after_trials and value < statistics.median(values)


def suggested(trial: Trial, name: str, space: DictConfig) -> Any:
    """A setting's value in a trial."""
    if "choices" in space:
        return trial.suggest_categorical(name, list(space.choices))
    whole = isinstance(space.low, int) and isinstance(space.high, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(name, space.low, space.high, log=space.get("log", False))


def means(file: Path) -> Iterator[tuple[int, float]]:
    """For each evaluation of a run its step, and the mean return of all until then."""
    rows = list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []
    total = 0.0
    for count, row in enumerate(rows, 1):
        total += float(row["eval_return_mean"])
        yield int(row["step"]), total / count


def table(trials: list[FrozenTrial]) -> Iterator[str]:
    """Lines of Markdown, the best trial first, those that were stopped behind them."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    yield f"| trial | ended | steps | mean return | {' | '.join(names)} |"
    yield "|---" * (4 + len(names)) + "|"
    complete = TrialState.COMPLETE
    for t in sorted(trials, key=lambda t: (t.state != complete, -(t.value or 0), t.number)):
        step, value = max(t.intermediate_values.items(), default=(0, float("nan")))
        params = [t.params.get(name, "") for name in names]
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in params]
        ended = t.state.name.lower()
        yield f"| {t.number} | {ended} | {step} | {value:.1f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
