"""Judges and shows what runs have trained.

python examples/evaluate.py DIR [DIR...]             # ten deterministic episodes of each
python examples/evaluate.py DIR --best --stochastic  # the best evaluation's networks, drawn actions
python examples/evaluate.py DIR --video FILE.mp4     # films the first episode, without a screen
python examples/evaluate.py DIR --video FILE.gif --length 200  # a small one of its beginning
python examples/evaluate.py DIR --render             # shows the episodes on the screen
python examples/evaluate.py DIR --imagine FILE.png   # that episode, as the world model foresees it
python examples/evaluate.py DIR --imagine FILE.mp4   # likewise, filmed beside the real one
python examples/evaluate.py DIR --critic FILE.png    # maps the critics' value and action-gradient
python examples/evaluate.py DIR --ship NEW_DIR       # what others need of the run, and its scores

DIR is a run's folder, as the scripts print it. Episode i starts from the seed ``--seed`` + i, so
that runs are compared on the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import check_imagines, critic_map, film, imagination, imagined_film
from plot import bootstrap
from torchrl.envs.utils import ExplorationType
from tqdm.auto import trange

from torchrl_mage import LoadedRun, LoadError, load_run, ship_run
from torchrl_mage.trainers import Evaluation, evaluate, use_offscreen_rendering

SINGLE = ("video", "imagine", "critic", "ship")  # of one run
FILMS, FIGURES = (".mp4", ".gif"), (".png", ".pdf", ".svg")


def main() -> None:
    """Evaluates the runs that the command line names."""
    args = parsed(sys.argv[1:])
    try:
        if args.video or (args.imagine and args.imagine.suffix in FILMS):
            use_offscreen_rendering()
        # All of them before any is evaluated, so that a wrong one is named at once.
        runs = {folder: load_run(folder, best=args.best) for folder in args.folders}
        for folder, run in runs.items():
            judged(folder, run, args)
    except (LoadError, ModuleNotFoundError) as error:
        raise SystemExit(f"{error}") from error


def judged(folder: Path, run: LoadedRun, args: argparse.Namespace) -> None:
    """Evaluates a run, prints its scores and writes what was asked for."""
    if args.stochastic and "scale" not in run.policy.out_keys:
        raise SystemExit(f"{folder}: its policy is deterministic; leave --stochastic out.")
    if args.imagine:  # before any episode
        check_imagines(run, film=args.imagine.suffix in FILMS)
    exploration = ExplorationType.RANDOM if args.stochastic else ExplorationType.DETERMINISTIC
    env = run.task.make_env(**{"render_mode": "human"} if args.render else {})
    found = evaluated(run, env, args.episodes, args.seed, exploration, str(folder))
    env.close()
    scores = summary(torch.cat([evaluation.returns for evaluation in found]).double().numpy())
    print(f"{folder}: {run.task.name}, {run.settings['script']}, {words(scores)}")
    episodes = [evaluation.episodes[0] for evaluation in found]
    if args.video:
        film(run, args.video, args.seed, exploration, args.length)
    if args.imagine and args.imagine.suffix in FILMS:
        imagined_film(run, episodes[0], args.steps, args.imagine)
    elif args.imagine:
        imagination(run, episodes[0], args.steps).savefig(args.imagine, dpi=120)
    if args.critic:
        visited = torch.cat([episode["observation"] for episode in episodes])
        critic_map(run, visited, args.features).savefig(args.critic, dpi=120)
    if args.ship:
        whole = ship_run(folder, args.ship, best=args.best)
        asked = {name: getattr(args, name) for name in ("best", "stochastic", "seed")}
        text = json.dumps({"task": run.task.name, **asked, **scores}, indent=2)
        (args.ship / "scores.json").write_text(text + "\n")
        print(f"shipped to {args.ship}" + ("" if whole else ", without the world model"))


def evaluated(
    run: LoadedRun, env: Any, episodes: int, seed: int, exploration: ExplorationType, title: str
) -> list[Evaluation]:
    """One evaluation an episode, each from a seed of its own."""
    torch.manual_seed(seed)
    return [
        evaluate(env, run.policy, episodes=1, seed=seed + i, exploration=exploration)
        for i in trange(episodes, desc=title, unit="episode", leave=False, dynamic_ncols=True)
    ]


def summary(returns: np.ndarray) -> dict[str, Any]:
    """Mean, population standard deviation and minimum of returns, and the mean's 95 % interval.

    Example:
        >>> summary(np.array([-1.0, 3.0]))["mean"], summary(np.array([-1.0, 3.0]))["std"]
        (1.0, 2.0)
    """
    low, high = bootstrap(returns[:, None], np.mean)  # percentile, of seed 0
    return {
        "episodes": len(returns),
        "mean": returns.mean().item(),
        "std": returns.std().item(),
        "minimum": returns.min().item(),
        "interval": [low.item(), high.item()],
        "returns": returns.tolist(),
    }


def words(scores: dict[str, Any]) -> str:
    """What is printed of them."""
    low, high = scores["interval"]
    return (
        f"{scores['episodes']} episodes: mean {scores['mean']:.2f} [{low:.2f}, {high:.2f}], "
        f"std {scores['std']:.2f}, minimum {scores['minimum']:.2f}"
    )


def parsed(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="of a run")
    add("--episodes", type=count, default=10, metavar="N", help="of each run (10)")
    add("--seed", type=int, default=0, metavar="N", help="of the first episode (0)")
    add("--best", action="store_true", help="the networks of the best evaluation, not the last")
    add("--stochastic", action="store_true", help="draw the actions of a stochastic policy")
    add("--video", type=new_file(*FILMS), metavar="FILE", help='needs the extra "video"')
    add("--length", type=count, default=1000, metavar="N", help="steps of --video, at most (1000)")
    add("--render", action="store_true", help='needs a screen and, but for MuJoCo, "video" too')
    add("--imagine", type=new_file(*FIGURES, *FILMS), metavar="FILE", help="a figure, or a film")
    add("--steps", type=count, default=50, metavar="N", help="that --imagine looks ahead (50)")
    add("--critic", type=new_file(*FIGURES), metavar="FILE", help="a figure")
    add("--features", type=int, nargs=2, metavar="I", help="axes of --critic, from 0 (0 1)")
    add("--ship", type=Path, metavar="NEW_DIR", help="its networks stay below 1 MB")
    args = parser.parse_args(argv)
    for option in SINGLE:
        if getattr(args, option) and len(args.folders) > 1:
            parser.error(f"--{option} takes one DIR, got {len(args.folders)}.")
    screen = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if args.render and not screen:
        parser.error("--render needs a screen; --video FILE.mp4 films an episode without one.")
    return args


def count(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}.")
    return number


def new_file(*suffixes: str) -> Any:
    """A type of files that can be written, told by how their name ends."""

    def checked(text: str) -> Path:
        file = Path(text)
        if file.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(suffixes)}.")
        if not file.parent.is_dir():
            raise argparse.ArgumentTypeError(f"{text}: there is no folder {file.parent}.")
        return file

    return checked


if __name__ == "__main__":
    main()
