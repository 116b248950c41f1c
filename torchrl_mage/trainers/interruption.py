"""Ctrl-C and a scheduler's SIGTERM as a request to stop at the next whole step."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

# EX_TEMPFAIL of sysexits.h: try again later, with resume.
EXIT_INTERRUPTED = 75


class Interruption:
    """While entered, SIGINT and SIGTERM set :attr:`requested` instead of ending the process.

    A second signal of the kind does what it always did.

    Example:
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interruption.requested
        True
    """

    requested = False

    def __enter__(self) -> Interruption:
        self._before: dict[int, Any] = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._before[number])
