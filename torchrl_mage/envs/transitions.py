"""Transitions that were logged elsewhere: a CSV or NPZ file in raw units, or a Minari dataset."""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box, flatten
from gymnasium.vector.utils import batch_space, iterate
from tensordict import TensorDict

from torchrl_mage.envs.tasks import Task

REQUIRED = ("observation", "action", "reward", "next_observation", "terminated")
COLUMNS = (*REQUIRED, "truncated")
MINARI = "minari:"
# Of a box's side: what a number loses that is written with seven digits.
ROUNDING = 1e-6

Columns = Mapping[str, np.ndarray]


class DataError(ValueError):
    """Data that are no transitions of the task; the message says what is wrong, and where."""


def read_transitions(source: str | Path, task: Task) -> TensorDict:
    """Reads logged transitions of a task, in the units of its gymnasium environment.

    Args:
        source: one of

            - ``FILE.csv``: a line of names, then a line a transition: ``observation_0`` ...,
              ``action_0`` ..., ``reward``, ``next_observation_0`` ..., ``terminated`` and, if there
              is a time limit, ``truncated``, both 0 or 1, true or false; other columns are left;
            - ``FILE.npz``: arrays of these names without a number, ``[N, D]``, ``[N, A]``, and
              ``[N]`` or ``[N, 1]``;
            - ``minari:ID``: a dataset in Minari's local storage (extra ``minari``).

        task: whose observations, flattened, and actions they are, as ``task.make_gymnasium()`` has
            them.

    Returns:
        ``[N]`` with the entries of a run's transitions: ``observation`` and ``next`` in float32,
        ``action`` in [-1, 1].

    Raises:
        DataError: the source is missing or damaged, lacks a column, has none that fits the task, or
            holds what is not finite or an action outside its box. Transitions count from 0.

    Example:
        >>> import tempfile
        >>> from torchrl_mage import get_task
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "log.npz"
        ...     np.savez(
        ...         file, observation=np.zeros((5, 3)), action=np.full((5, 1), 1.5),
        ...         reward=np.zeros(5), next_observation=np.ones((5, 3)), terminated=np.zeros(5),
        ...     )
        ...     data = read_transitions(file, get_task("Pendulum-v1"))
        >>> data.shape, data["action"][0]  # torques of at most 2
        (torch.Size([5]), tensor([0.7500]))
    """
    name = str(source)
    if name.startswith(MINARI):
        columns = _of_minari(name)
    elif Path(name).suffix in (".csv", ".npz"):
        if not Path(name).is_file():
            raise DataError(f"{name}: there is no such file, seen from {Path.cwd()}.")
        columns = _of_csv(name) if name.endswith(".csv") else _of_npz(name)
    else:
        raise DataError(f"{name} is neither a .csv nor a .npz file nor {MINARI}ID.")
    return _transitions(name, columns, task)


# ---------------------------------------------------------------- what the sources hold


def _of_csv(name: str) -> Columns:
    try:
        with Path(name).open(newline="", encoding="utf-8-sig") as file:
            filled = [[text.strip() for text in line] for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name} is no text of comma-separated values: {error}") from error
    titles, *lines = filled or [[]]
    for row, line in enumerate(lines):
        if len(line) != len(titles):
            raise DataError(
                f"{name}, transition {row}: {len(line)} values, the first line names "
                f"{len(titles)} columns."
            )
    columns = {}
    for column in COLUMNS:
        numbered = [re.fullmatch(rf"{column}(?:_(\d+))?", title) for title in titles]
        places = sorted((int(m[1] or 0), i) for i, m in enumerate(numbered) if m)
        if places:
            values = [
                [_number(line[i], f"{name}, transition {row}: {titles[i]}") for _, i in places]
                for row, line in enumerate(lines)
            ]
            columns[column] = np.array(values, float).reshape(len(lines), len(places))
    return columns


def _number(text: str, what: str) -> float:
    """A float; true and false are 1 and 0."""
    try:
        return float({"true": "1", "false": "0"}.get(text.lower(), text))
    except ValueError as error:
        raise DataError(f"{what} is {text!r}, no number.") from error


def _of_npz(name: str) -> Columns:
    try:
        with np.load(name, allow_pickle=False) as file:
            return {key: np.atleast_1d(file[key]) for key in COLUMNS if key in file}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} is damaged, or holds more than numbers: {error}") from error


def _of_minari(name: str) -> Columns:
    identity = name.removeprefix(MINARI)
    try:
        import minari  # an extra

        dataset = minari.load_dataset(identity)
    except ImportError as error:
        raise DataError(f'{name} needs Minari ({error}): pip install -e ".[minari]".') from error
    except (FileNotFoundError, ValueError) as error:
        known = sorted(minari.list_local_datasets())
        raise DataError(
            f"{name} is not in Minari's local storage, which has {known}: `minari download "
            f"{identity}` fetches a public one, MINARI_DATASETS_PATH names another folder ({error})"
        ) from error
    parts: dict[str, list[np.ndarray]] = {key: [] for key in COLUMNS}
    for episode in dataset.iterate_episodes():
        space = batch_space(dataset.observation_space, len(episode.rewards) + 1)
        seen = iterate(space, episode.observations)
        observations = np.array([flatten(dataset.observation_space, one) for one in seen])
        parts["observation"].append(observations[:-1])
        parts["next_observation"].append(observations[1:])
        parts["action"].append(np.asarray(episode.actions))
        parts["reward"].append(np.asarray(episode.rewards))
        parts["terminated"].append(np.asarray(episode.terminations))
        parts["truncated"].append(np.asarray(episode.truncations))
    return {key: np.concatenate(values) for key, values in parts.items() if values}


# ---------------------------------------------------------------- what the task takes


def _transitions(name: str, columns: Columns, task: Task) -> TensorDict:
    if lacking := [column for column in REQUIRED if column not in columns]:
        raise DataError(
            f"{name} lacks {', '.join(lacking)}: a transition has {', '.join(REQUIRED)} (numbered "
            "from 0 in a CSV file, as observation_0). What an episode observes after its last "
            "action belongs to it: where it was not logged, leave that transition out."
        )
    env = task.make_gymnasium()
    observations, actions = env.observation_space, env.action_space
    env.close()
    assert isinstance(observations, Box)
    assert isinstance(actions, Box)
    size = observations.shape[0]
    sizes = {"observation": size, "next_observation": size, "action": actions.shape[0]}
    count = len(columns["reward"])
    found = {
        column: _checked(name, column, values, count, sizes.get(column, 1), task)
        for column, values in columns.items()
    }
    if not count:
        raise DataError(f"{name} holds no transition.")
    low, high = (bound.astype(np.float64) for bound in (actions.low, actions.high))
    outside = np.abs(found["action"] - (low + high) / 2) > (high - low) * (0.5 + ROUNDING)
    if outside.any():
        row, feature = np.argwhere(outside)[0]
        raise DataError(
            f"{name}, transition {row}: action_{feature} = {found['action'][row, feature]:g} lies "
            f"outside [{low[feature]:g}, {high[feature]:g}], the box of {task.name} "
            f"({outside.any(1).sum()} of {count} transitions). Actions are in the environment's "
            "own units, as it carried them out; clip what it clipped."
        )
    scaled = np.clip(2 * (found["action"] - low) / (high - low) - 1, -1, 1)
    terminated, truncated = (
        torch.from_numpy(found.get(key, found["terminated"]) == 1)
        for key in ("terminated", "truncated")
    )
    return TensorDict(
        {
            "observation": torch.from_numpy(found["observation"]).float(),
            "action": torch.from_numpy(scaled).float(),
            "next": {
                "observation": torch.from_numpy(found["next_observation"]).float(),
                "reward": torch.from_numpy(found["reward"]).float(),
                "terminated": terminated,
                "done": terminated | truncated,
            },
        },
        batch_size=[count],
    )


def _checked(
    name: str, column: str, values: np.ndarray, count: int, size: int, task: Task
) -> np.ndarray:
    """A column as float64 ``[count, size]``."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"{name}: {column} has the dtype {values.dtype}; it must be real numbers.")
    if len(values) != count:
        raise DataError(
            f"{name}: {column} has {len(values)} rows, reward {count}; each transition has one."
        )
    width = int(np.prod(values.shape[1:]))
    if width != size:
        raise DataError(
            f"{name}: {column} has {width} features, that of {task.name} {size} here: log what "
            f"find_task({task.name!r}).make_gymnasium() observes and takes."
        )
    values = values.reshape(count, size).astype(np.float64)
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)
    if column in ("terminated", "truncated"):
        bad = ~np.isin(values, (0, 1))
    if bad.any():
        row, feature = np.argwhere(bad)[0]
        which = f"{column}_{feature}" if size > 1 else column
        wanted = "0 or 1" if column in ("terminated", "truncated") else "finite in float32"
        raise DataError(
            f"{name}, transition {row}: {which} = {values[row, feature]:g}, must be {wanted} "
            f"({bad.any(1).sum()} of {count} transitions). Leave them out or mend them."
        )
    return values
