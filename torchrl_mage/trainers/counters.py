"""What a training loop counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Counters:
    """Counts of a run, for its loop and its checkpoints.

    Example:
        >>> counters = Counters(step=5)
        >>> Counters().load_state_dict(counters.state_dict())
    """

    step: int = 0
    updates: int = 0
    episode_return: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counts by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the counts over."""
        for name, value in state.items():
            setattr(self, name, value)
