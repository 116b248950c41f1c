"""One process a run folder: what two write is neither's."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


class RunInUseError(RuntimeError):
    """Another process trains in the run's folder."""


class RunLock:
    """Held while a run trains; a process that ends, however it ends, holds it no longer.

    Args:
        folder: of the run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = RunLock(folder)
        ...     lock.acquire()
        ...     taken = RunLock(folder).in_use()
        ...     lock.release()
        ...     taken, RunLock(folder).in_use()
        (True, False)
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = folder
        self._lock = FileLock(Path(folder) / "lock", timeout=0)

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            RunInUseError: another holds it.
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunInUseError(
                f"another process trains in {self._folder}: wait for it, stop it, or choose "
                "another folder."
            ) from error

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        self._lock.release()

    def in_use(self) -> bool:
        """Whether somebody holds it."""
        try:
            with self._lock:
                return False
        except Timeout:
            return True
