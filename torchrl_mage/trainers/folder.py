"""A run's folder: one process at a time, its settings, and which one a script goes on in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from torchrl_mage.trainers.checkpoint import CheckpointError, checkpoints, resuming

CONFIG = "config.yaml"
BEST = "best_networks.pt"  # of the best evaluation so far
NETWORKS = "networks.pt"  # written last: a run that has it is finished


class RunInUseError(RuntimeError):
    """Another process trains in the run's folder."""


class RunLock:
    """Held while a run trains; a process that ends, however it ends, holds it no longer.

    Args:
        folder: of the run.

    Raises:
        RunInUseError: when it is entered, and another holds it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with RunLock(folder):
        ...         taken = RunLock(folder).in_use()
        ...     taken, RunLock(folder).in_use()
        (True, False)
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = folder
        self._lock = FileLock(Path(folder) / "lock", timeout=0)

    def __enter__(self) -> RunLock:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunInUseError(
                f"another process trains in {self._folder}: wait for it, stop it, or choose "
                "another folder."
            ) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def in_use(self) -> bool:
        """Whether somebody holds it."""
        try:
            with self._lock:
                return False
        except Timeout:
            return True


@contextmanager
def held_folder(path: Path, settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """A run's folder, made if it is missing, locked, with its settings as ``config.yaml``.

    The settings are written under the lock: of two processes that start in the same instant, those
    of the one that trains are in there.

    Args:
        path: of the folder.
        settings: of the run; ``None`` leaves the file alone.

    Raises:
        RunInUseError: another process trains in there.
        CheckpointError: it cannot be written, or holds a run with other settings by now.
    """
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(path))
            if settings is not None:
                _keep(path, settings)
        except OSError as error:
            raise CheckpointError(
                f"the run folder {path} cannot be written: {error}. Choose another with "
                "hydra.run.dir=DIR."
            ) from error
        yield


def _keep(path: Path, settings: Mapping[str, Any]) -> None:
    held = checkpoints(path)
    if held and (path / CONFIG).exists():
        saved = _read(path)
        longer = _made_longer(saved, settings)
        if differing := differing_keys(longer, settings):
            raise CheckpointError(
                f"{path} holds a run with other settings, which began meanwhile: "
                f"{'; '.join(differing)}. Choose another folder."
            )
        if longer == saved:
            return
    import yaml  # of the extra "examples", as below

    if held:  # a run that is made longer is not at its end; the newest checkpoint has its networks
        (path / NETWORKS).unlink(missing_ok=True)
    scratch = path / f"{CONFIG}.writing"
    scratch.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    scratch.rename(path / CONFIG)


def _made_longer(saved: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The saved settings, at the larger of both lengths."""
    lengths = [s["total_steps"] for s in (saved, settings) if "total_steps" in s]
    return {**saved, "total_steps": max(lengths)} if lengths else saved


def open_run(
    path: str | Path,
    settings: dict[str, Any],
    *,
    resume: str | None,
    overridden: Sequence[str],
) -> tuple[dict[str, Any], Path]:
    """Finds the settings and the folder of a run: a new one, or one to be continued.

    Args:
        path: the run's folder: the one that ``resume`` names, if it names one.
        settings: what the user asked for, nested.
        resume: ``None`` starts a run; ``"auto"`` continues the one in ``path`` (a finished one has
            no more to do), or the newest unfinished one beside it, if it has these settings, or
            starts one; all else continues the one in ``path``.
        overridden: what the user set, ``"key.below=value"`` or the key alone, with or without a
            leading ``+`` or ``~``: it must be as in the run to be continued, whatever the rest of
            ``settings`` is, but for a larger ``total_steps``, which makes that run longer. A key
            that is no setting, such as an experiment's, stands for all.

    Returns:
        The run's settings, which :func:`held_folder` saves as ``config.yaml``, and its folder.

    Raises:
        CheckpointError: there is nothing to continue in ``path``, it is another script's (setting
            ``script``) or has another value of a key that was set, or a new run would start over
            another.
    """
    path = Path(path)
    if resume == "auto":
        known = checkpoints(path) and (path / CONFIG).exists()
        if known and not differing_keys(_read(path), settings):
            return settings, path
        if found := newest_unfinished_run(path.parent, settings):
            return settings, found
    if resume in (None, "auto"):
        if checkpoints(path):
            raise CheckpointError(
                f"{path} holds a run already: continue it with {resuming(path)}, or choose another "
                "folder."
            )
    else:
        if not checkpoints(path) or not (path / CONFIG).exists():
            raise CheckpointError(f"resume={resume}: no checkpoint of a run in {path}.")
        saved = _read(path)
        wanted = settings.get("script")
        if (script := saved.get("script", wanted)) != wanted:
            raise CheckpointError(
                f"{path} holds a run of the script {script}, not of {wanted}: continue it with "
                "that one."
            )
        held, keys = set(_dotted(saved)), list(_dotted(settings))
        if lacking := [key for key in keys if key not in held]:
            raise CheckpointError(
                f"{path} was run by another version of the script: its {CONFIG} lacks "
                f"{', '.join(lacking)}. Add them there, or start a run of its own without resume."
            )
        named = {override.lstrip("+~").partition("=")[0]: None for override in overridden}
        named.pop("resume", None)
        longer = _made_longer(saved, settings) if "total_steps" in named else saved
        differing = [
            line
            for key in (named if named.keys() <= set(keys) else settings)
            for line in differing_keys({key: _select(longer, key)}, {key: _select(settings, key)})
        ]
        if differing:
            raise CheckpointError(
                f"{path} was run with other settings: {'; '.join(differing)}. Leave them out to "
                "continue it as it was (total_steps may be raised), or start a run of its own "
                "without resume."
            )
        return longer, path
    return settings, path


def newest_unfinished_run(root: Path, settings: Mapping[str, Any]) -> Path | None:
    """The newest run below ``root`` with these settings and a checkpoint, no end, and no user."""
    runs = [file.parent for file in root.glob(f"*/{CONFIG}") if checkpoints(file.parent)]
    for run in sorted(runs, key=lambda run: checkpoints(run)[0].stat().st_mtime, reverse=True):
        if (run / NETWORKS).exists() or differing_keys(_read(run), settings):
            continue
        if not RunLock(run).in_use():
            return run
    return None


def differing_keys(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Where two nested settings differ but for ``resume``, as ``"key.below: old -> new"``.

    Example:
        >>> differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
        ['a.c: 2 -> 3']
    """
    found = []
    for key in dict.fromkeys([*saved, *wanted]):
        old, new = saved.get(key), wanted.get(key)
        if key == "resume" or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{key}.{line}" for line in differing_keys(old, new)]
        else:
            found.append(f"{key}: {old} -> {new}")
    return found


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested settings, those of whole branches too."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((path / CONFIG).read_text())


def _select(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings
