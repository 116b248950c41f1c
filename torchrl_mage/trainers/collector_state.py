"""Where a collector stands in the middle of an episode."""

from __future__ import annotations

import warnings
from typing import Any

from tensordict import TensorDict
from torchrl.collectors import Collector

from torchrl_mage.trainers.env_state import EnvState


class CollectorState:
    """A collector's counters, the tensordict it carries from step to step, and its environment.

    ``Collector.state_dict`` starts a new episode when it is loaded; this goes on in the old one,
    unless the environment keeps a state that cannot be read: then a new one starts, with a warning.

    Args:
        collector: of one gymnasium environment, before or between two of its batches.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._env = EnvState(collector.env)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings."""
        collector = self._collector
        return {
            "frames": collector._frames,
            "iterations": collector._iter,
            "trajectories": collector._traj_pool.state_dict(),
            "carrier": collector._carrier.flatten_keys("/").clone().to_dict(),
            "environment": self._env.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was read."""
        collector = self._collector
        collector._frames, collector._iter = state["frames"], state["iterations"]
        collector._traj_pool.load_state_dict(state["trajectories"])
        carrier = TensorDict(state["carrier"], batch_size=collector._carrier.batch_size)
        collector._carrier = carrier.to(collector._carrier.device).unflatten_keys("/")
        if unread := self._env.unread:
            warnings.warn(
                f"the environment keeps {unread}, which a checkpoint cannot hold: the run goes on "
                "with a new episode instead of bit for bit. Attributes that are numbers or arrays "
                "are held.",
                stacklevel=2,
            )
            collector.reset()
        else:
            self._env.load_state_dict(state["environment"])
