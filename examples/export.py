"""A run's policy as one file that runs without this package: torch.export's and ONNX.

python examples/export.py runs/mage_td3/pendulum/seed0_DATE    # policy.pt2 and policy.onnx in it
python examples/export.py DIR --best --out agents/pendulum     # of the run's best evaluation

Both read ``observation``, ``float32[batch, D]``, as the plain gymnasium environment has it, and
give the deterministic ``action``, ``float32[batch, A]``, in that environment's own box; the
normaliser is inside. Each is loaded again and compared with the run's policy before it is kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from torchrl_mage import LoadedRun, LoadError, load_run
from torchrl_mage.envs import EnvironmentFault
from torchrl_mage.modules import RawPolicy

try:
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter needs it
except ImportError as error:
    raise SystemExit(f'{error}: pip install -e ".[export]".') from error

STEPS = 200  # of the environment, at whose observations the files are compared
TOLERANCE = 1e-5  # of the length of the action's box


def exported(policy: RawPolicy, obs_dim: int) -> ExportedProgram:
    """The policy as one program, for batches of any size.

    Args:
        policy: on the CPU.
        obs_dim: number of observation features ``D``.
    """
    batch = {"observation": {0: Dim("batch")}}
    return torch.export.export(policy, (torch.zeros(2, obs_dim),), dynamic_shapes=batch)


def save_onnx(program: ExportedProgram, file: Path) -> None:
    """Writes the same program as ONNX, weights included."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators that it skips
    names = {"input_names": ["observation"], "output_names": ["action"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own pickling
        torch.onnx.export(program, (), file, **names, verbose=False, external_data=False)


def actions(file: Path, observations: np.ndarray) -> np.ndarray:
    """What an exported file answers, ``[batch, A]``, to ``[batch, D]``."""
    if file.suffix == ".pt2":
        program = torch.export.load(file).module()
        return program(torch.as_tensor(observations)).numpy()
    session = onnxruntime.InferenceSession(file)
    return session.run(["action"], {"observation": observations})[0]


def check(file: Path, run: LoadedRun, observations: np.ndarray) -> float:
    """The file's largest difference from the run's policy, in lengths of the action's box.

    Raises:
        SystemExit: it is beyond the tolerance.
    """
    length = (run.raw_policy.high - run.raw_policy.low).numpy()
    expected = run.act(observations)
    answers = actions(file, observations), actions(file, observations[:1])
    worst = max(np.abs((got - expected[: len(got)]) / length).max().item() for got in answers)
    if not worst <= TOLERANCE:
        raise SystemExit(
            f"the exported {file.suffix} differs from the run's policy by {worst:.1e} of the "
            f"action's box, more than {TOLERANCE:.0e}; nothing was written."
        )
    return worst


def main() -> None:
    """Loads, exports, compares, and only then writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run's folder")
    parser.add_argument("--best", action="store_true", help="the networks of the best evaluation")
    parser.add_argument("--out", type=Path, help="the files, less their endings (DIR/policy)")
    args = parser.parse_args()
    try:
        run = load_run(args.folder, best=args.best)
        raw_policy = run.raw_policy
        env = run.task.make_env()
        env.set_seed(0)
        rollout = env.rollout(STEPS, run.policy, break_when_any_done=False)
    except (LoadError, EnvironmentFault, ValueError) as error:
        raise SystemExit(str(error)) from error
    observations = rollout["observation"].numpy()

    program = exported(raw_policy, observations.shape[-1])
    out = args.out or args.folder / "policy"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        files = [Path(folder, "policy.pt2"), Path(folder, "policy.onnx")]
        torch.export.save(program, files[0])
        save_onnx(program, files[1])
        differences = [check(file, run, observations) for file in files]
        for file, difference in zip(files, differences, strict=True):
            target = out.parent / f"{out.name}{file.suffix}"
            os.replace(file, target)
            print(f"wrote {target}, within {difference:.0e} of the policy on {STEPS} steps")
    print(
        f"{run.task.name}: float32[batch, {observations.shape[-1]}] in, "
        f"float32[batch, {len(raw_policy.low)}] out"
    )


if __name__ == "__main__":
    main()
