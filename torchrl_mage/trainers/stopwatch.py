"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

REST = "rest"


class Stopwatch:
    """Seconds by part; those of an inner part are not its outer one's, so that all add up.

    On a GPU, which computes on while Python has moved on, they tell where Python waited.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.part("updates"):
        ...     with watch.part("fit"):
        ...         pass
        >>> sorted(watch.seconds())
        ['fit', 'rest', 'updates']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open = [REST]
        self._mark = time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done within is ``name``'s."""
        self._credit()
        self._open.append(name)
        try:
            yield
        finally:
            self._credit()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """The seconds so far of each part, and of :data:`REST`, which is all else."""
        self._credit()
        return dict(self._seconds)

    def load(self, seconds: dict[str, float]) -> None:
        """Goes on from :meth:`seconds`."""
        self._seconds, self._mark = dict(seconds), time.monotonic()

    def _credit(self) -> None:
        now = time.monotonic()
        part = self._open[-1]
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._mark
        self._mark = now
