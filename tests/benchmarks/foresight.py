"""How well a way of fitting foresees new data: python tests/benchmarks/foresight.py DIR

Replays the transitions of a finished run in their order. Before each fit the model is tested on the
25 transitions that come next, which it has not seen, as in the run: one and three steps ahead, in
standard deviations of the state's difference, and by their likelihood; then it is fitted to them
too. Prints a Markdown row for each way, with the seconds of the processor that its fits took.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_mage import GaussianEnsembleLoss, GaussianEnsembleWorldModel
from torchrl_mage.objectives import fit, radam
from torchrl_mage.trainers import Minimizer, in_precision
from torchrl_mage.trainers.hardware import Precision
from torchrl_mage.trainers.optimisation import Silent

INTERVAL, AHEAD = 25, 3


@dataclasses.dataclass(frozen=True)
class Way:
    """Of fitting."""

    members: int = 8
    batch: int = 256
    minibatches: int = 120
    precision: Precision = "float32"


WAYS = [
    Way(),
    Way(members=5),
    Way(batch=128),
    Way(members=5, batch=128),
    Way(members=5, batch=128, precision="bf16"),
    Way(members=5, batch=128, minibatches=60),
    Way(members=5, batch=64),
]


def transitions(run: Path) -> TensorDict:
    """What a run's checkpoints hold, in order, ``[N]``."""
    pieces = sorted((run / "checkpoints" / "buffer").glob("*.pt"))
    if not pieces:
        raise SystemExit(f"{run} has no checkpoint with transitions; name a run's folder.")
    parts = [TensorDict(torch.load(piece)).unflatten_keys("/") for piece in pieces]
    return torch.cat([part.auto_batch_size_(1) for part in parts])


def errors(model: GaussianEnsembleWorldModel, new: TensorDict, scale: Tensor) -> list[float]:
    """Mean squared errors of the members' own courses 1 and :data:`AHEAD` steps on, and the nll."""
    starts = len(new) - AHEAD + 1
    ended = new["next", "done"].squeeze(-1).float()
    whole = torch.stack([ended[k : k + starts] for k in range(AHEAD - 1)]).sum(0) == 0
    state = new["observation"][:starts].expand(model.ensemble_size, -1, -1)
    found = []
    for k in range(AHEAD):
        action = new["action"][k : k + starts].expand(model.ensemble_size, -1, -1)
        predicted, _ = model.gaussian(model.network(model.normalized_input(state, action)))
        state = state + model.difference_statistics.denormalize(predicted)
        error = ((state - new["next", "observation"][k : k + starts]) / scale).square().mean(-1)
        found.append((error if k == 0 else error[:, whole]).mean().item())
    nll = GaussianEnsembleLoss(model, per_member=False)(new)["loss_world_model"].item()
    return [found[0], found[-1], nll]


def tried(way: Way, data: TensorDict, start: int, end: int) -> tuple[list[float], float]:
    """Mean errors on what was new, and the seconds of the processor."""
    torch.manual_seed(0)
    model = GaussianEnsembleWorldModel(
        data["observation"].shape[-1],
        data["action"].shape[-1],
        ensemble_size=way.members,
        num_cells=(256,) * 4,
    )
    minimize = Minimizer(
        Silent(),
        "loss_world_model",
        in_precision(GaussianEnsembleLoss(model).nll, way.precision, torch.device("cpu")),
        radam(model.parameters(), lr=5e-4, weight_decay=1e-4, decoupled_weight_decay=True),
        clip=5.0,
    )

    def fit_to(size: int, *, new: int, minibatches: int) -> float:
        began = time.process_time()
        seen, batch = data[:size], way.batch
        fit(model, minimize, seen, new=new, batch_size=batch, min_batches=minibatches, exact=True)
        return time.process_time() - began

    spent = fit_to(start, new=start, minibatches=10 * way.minibatches)
    found = []
    for size in range(start, end, INTERVAL):
        before = data[:size]
        scale = (before["next", "observation"] - before["observation"]).std(0)
        with torch.no_grad():
            found.append(errors(model, data[size : size + INTERVAL], scale))
        spent += fit_to(size + INTERVAL, new=INTERVAL, minibatches=way.minibatches)
    return [mean(column) for column in zip(*found, strict=True)], spent


def say(line: str) -> None:
    """Writes a line at once: a way takes minutes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Tries each way on one run's data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="DIR", help="of a finished run")
    parser.add_argument("--start", type=int, default=1000, help="transitions to begin with (1000)")
    parser.add_argument("--end", type=int, default=2000, help="where to stop (2000)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = transitions(args.run)
    if not 0 < args.start < args.end <= len(data) - INTERVAL:
        parser.error(f"0 < start < end <= {len(data) - INTERVAL} is needed.")
    say("| members | batch | minibatches a fit | precision | 1 step | 3 steps | nll | seconds |")
    say("|---" * 8 + "|")
    for way in WAYS:
        (one, three, nll), spent = tried(way, data, args.start, args.end)
        settings = " | ".join(str(value) for value in dataclasses.astuple(way))
        say(f"| {settings} | {one:.4f} | {three:.3f} | {nll:.2f} | {spent:.0f} |")


if __name__ == "__main__":
    main()
