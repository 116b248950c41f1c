"""Checkpoints that are whole or absent, hold no code, and cost what is new.

A folder ``checkpoints`` holds one sub-folder a checkpoint, ``step_000001000``, with ``state.pt``
and ``manifest.json``, and beside them ``buffer``, the replay buffer in pieces that every later
checkpoint shares. A piece is written once, so that a checkpoint costs time in proportion to what is
new. The manifest lists the SHA-256 of all that the checkpoint needs. A checkpoint is written under
another name, flushed to the disk, and then renamed. Pieces that no manifest lists are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torchrl import torchrl_logger
from torchrl.data import ReplayBuffer

STATE, MANIFEST, BUFFER = "state.pt", "manifest.json", "buffer"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be restored."""


class Stateful(Protocol):
    """What a checkpoint holds: modules, optimisers, and the like."""

    def state_dict(self) -> Any:
        """The state, as tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Restores :meth:`state_dict`."""


class Checkpointer:
    """Saves and restores a run.

    Args:
        path: the run folder.
        components: what a checkpoint holds, by name; restored in this order.
        buffer: the replay buffer, which only grows.
        keep: how many checkpoints stay.

    Example:
        >>> import tempfile
        >>> from torchrl.data import LazyTensorStorage
        >>> buffer = ReplayBuffer(storage=LazyTensorStorage(10))
        >>> layer = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as path:
        ...     checkpointer = Checkpointer(path, {"layer": layer}, buffer)
        ...     _ = buffer.extend(TensorDict(x=torch.arange(3), batch_size=[3]))
        ...     checkpointer.save(3)
        ...     _ = torch.nn.init.zeros_(layer.weight)
        ...     step = checkpointer.restore()
        >>> step, bool(layer.weight.any())
        (3, True)
    """

    def __init__(
        self,
        path: str | Path,
        components: Mapping[str, Stateful],
        buffer: ReplayBuffer,
        *,
        keep: int = 2,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        self.path = Path(path) / "checkpoints"
        self._components = components
        self._buffer = buffer
        self._keep = keep
        self._pieces: dict[str, str] = {}  # the buffer's files and their digests, in order
        self._stored = 0  # transitions in them

    def save(self, step: int) -> None:
        """Writes the checkpoint of environment step ``step``.

        Raises:
            CheckpointError: the disk refuses; nothing half-written is left under its name.
        """
        target = self.path / f"step_{step:09d}"
        scratch = self.path / "writing"
        try:
            (self.path / BUFFER).mkdir(parents=True, exist_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            self._save_new_transitions()
            state = {name: part.state_dict() for name, part in self._components.items()}
            digest = _write(scratch / STATE, lambda file: torch.save(state, file))
            manifest = {
                "step": step,
                "transitions": self._stored,
                "sha256": {STATE: digest, **self._pieces},
            }
            text = json.dumps(manifest, indent=1).encode()
            _write(scratch / MANIFEST, lambda file: file.write(text))
            _flush_folder(scratch)
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
            _flush_folder(self.path)
        except (OSError, RuntimeError) as error:  # torch.save makes the latter of some OSErrors
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.path}: {error}. The "
                "checkpoints before it are whole. Free space or make the folder writable, then "
                f"continue with {resuming(self.path.parent)}."
            ) from error
        try:
            for old in checkpoints(self.path.parent)[self._keep :]:
                shutil.rmtree(old)
            self._remove_unnamed_pieces()
        except OSError as error:
            warnings.warn(
                f"the checkpoint of step {step} is whole, but what it replaces stays on the disk: "
                f"{error}. Each later checkpoint tries again.",
                stacklevel=2,
            )

    def restore(self) -> int | None:
        """Restores the newest checkpoint that is whole.

        A damaged one is named in the log, renamed to ``damaged_...`` and passed over.

        Returns:
            Its step; ``None`` where there is no checkpoint.

        Raises:
            CheckpointError: there are checkpoints, and every one of them is damaged.
        """
        candidates = checkpoints(self.path.parent)
        for folder in candidates:
            try:
                manifest, state, transitions = self._read(folder)
            except CheckpointError as error:
                torchrl_logger.warning(f"passing over a damaged checkpoint: {error}")
                damaged = folder.with_name(f"damaged_{folder.name}")
                shutil.rmtree(damaged, ignore_errors=True)  # of the same step, once before
                folder.rename(damaged)
                continue
            missing = set(self._components) ^ set(state)
            if missing:
                raise CheckpointError(
                    f"{folder} is of another trainer: {sorted(missing)} are not in both."
                )
            self._buffer.empty()
            if transitions is not None:
                self._buffer.extend(transitions)
            for name, part in self._components.items():
                part.load_state_dict(state[name])
            return int(manifest["step"])
        if candidates:
            raise CheckpointError(
                f"none of the {len(candidates)} checkpoints in {self.path} is whole; start anew in "
                "another folder."
            )
        return None

    def restore_or_start(self) -> int:
        """Restores the newest checkpoint that is whole, or writes that of step 0.

        So a disk that refuses is noticed before anything is trained.

        Returns:
            The step to go on from.

        Raises:
            CheckpointError: as :meth:`restore` and :meth:`save` do.
        """
        step = self.restore()
        if step is None:
            step = 0
            self.save(step)
        return step

    def _save_new_transitions(self) -> None:
        size = len(self._buffer)
        if size == self._stored:
            return
        # Cloned: a slice of the storage is saved with all of the storage behind it.
        new = self._buffer[self._stored : size].clone().flatten_keys("/").to_dict()
        name = f"{BUFFER}/{self._stored:09d}_{size:09d}.pt"
        digest = _write(self.path / name, lambda file: torch.save(new, file))
        _flush_folder(self.path / BUFFER)
        # Both or neither: else the next piece would repeat this one's transitions.
        self._pieces[name], self._stored = digest, size

    def _remove_unnamed_pieces(self) -> None:
        """Removes the pieces that no checkpoint lists: those of saves that failed."""
        named = set(self._pieces)
        for manifest in self.path.glob(f"*/{MANIFEST}"):  # of damaged checkpoints too
            with suppress(OSError, ValueError, KeyError, TypeError):
                named.update(json.loads(manifest.read_bytes())["sha256"])
        for piece in (self.path / BUFFER).iterdir():
            if piece.is_file() and f"{BUFFER}/{piece.name}" not in named:
                piece.unlink()

    def _read(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any], TensorDict | None]:
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            digests = dict(manifest["sha256"])
            int(manifest["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / MANIFEST} is missing or unreadable: {error}"
            ) from error
        state = _read(folder / STATE, digests.pop(STATE, ""))
        pieces = []
        for name, digest in digests.items():
            piece = TensorDict(_read(self.path / name, digest))
            piece.auto_batch_size_(1)
            pieces.append(piece)
        self._pieces, self._stored = digests, sum(map(len, pieces))
        transitions = TensorDict.cat(pieces).unflatten_keys("/") if pieces else None
        return manifest, state, transitions


def resuming(path: str | Path) -> str:
    """The override that continues the run in ``path``, as a shell takes it.

    Example:
        >>> print(resuming("runs/one"), resuming("sweep/env=pendulum,seed=0"))
        resume=runs/one 'resume="sweep/env=pendulum,seed=0"'
    """
    value = str(path)
    if not re.fullmatch(r"[\w./:-]*/[\w./:-]*", value, re.ASCII):  # 1e3 would be a number
        # In Hydra's quotes a backslash counts only before a quote, the closing one included.
        value = re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + (m[2] and '\\"'), value)
        value = f'"{value}"'
    return shlex.quote(f"resume={value}")


def held_transitions(path: str | Path) -> int:
    """How many transitions the newest checkpoint of a run holds; 0 where there is none.

    Example:
        >>> held_transitions("no/such/run")
        0
    """
    for folder in checkpoints(path):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((folder / MANIFEST).read_bytes())["transitions"])
    return 0


def checkpoints(path: str | Path) -> list[Path]:
    """The checkpoints of a run folder, the newest first."""
    return sorted((Path(path) / "checkpoints").glob("step_*"), reverse=True)


def _write(path: Path, write: Callable[[Any], Any]) -> str:
    """Writes a file whole or not at all, and returns its digest."""
    scratch = path.with_name(f"{path.name}.writing")
    with scratch.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    with scratch.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    scratch.rename(path)
    return digest


def _read(path: Path, digest: str) -> dict[str, Any]:
    """Reads tensors and plain values, from the file that was written and no other."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if found != digest:
        raise CheckpointError(f"{path} is not what was written (SHA-256 {found[:12]}...)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values: {error}"
        ) from error


def _flush_folder(path: Path) -> None:
    """Makes a rename in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
