"""The states on which an agent is trained: the buffer's, or those that are imagined from there."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import ReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_mage import ModelBasedEnv
from torchrl_mage.trainers import Run

POOL = 8  # environment steps whose updates' states it has room for, each drawn some three times


class TrainingStates:
    """Draws the states of an environment step's updates.

    With imagined steps it draws from a pool of states that the policy visits in the model, made
    anew after every fit: half of them where it explores, as where it collects, half where it does
    not, as where it is evaluated, which may drift to where no exploring episode ever was.

    Args:
        cfg: ``policy``: ``updates_per_step``, ``batch_size``, and ``imagination_steps``, those of a
            rollout (0: the buffer's states alone, as in the paper).
        run: which holds the pool.
        buffer: the replay buffer.
        imagination: what is imagined in.
        policy: writes the action, and explores where TorchRL's exploration type says so.
    """

    def __init__(
        self,
        cfg: DictConfig,
        run: Run,
        buffer: ReplayBuffer,
        imagination: ModelBasedEnv,
        policy: TensorDictModuleBase,
    ) -> None:
        self._buffer, self._imagination, self._policy = buffer, imagination, policy
        self._steps = cfg.policy.imagination_steps
        self._count = cfg.policy.updates_per_step * cfg.policy.batch_size
        self._pool: TensorDictBase | None = None
        if self._steps:
            run.holds(imagined_states=self)

    def renew(self) -> None:
        """Has the next sample imagine a new pool: the model has changed."""
        self._pool = None

    def sample(self) -> TensorDictBase:
        """The observations of an environment step's updates, one after the other."""
        if not self._steps:
            return self._buffer.sample().select("observation")
        if self._pool is None:
            self._pool = torch.cat([self._visited(kind) for kind in ("RANDOM", "DETERMINISTIC")])
        return self._pool[torch.randint(len(self._pool), (self._count,))]

    def _visited(self, kind: str) -> TensorDictBase:
        drawn = torch.randint(len(self._buffer), (POOL // 2 * self._count,))
        start = self._buffer[drawn].select("observation")
        with set_exploration_type(ExplorationType[kind]):
            return self._imagination.visited_states(self._policy, start, self._steps)

    def state_dict(self) -> dict[str, Any]:
        """The pool."""
        return {} if self._pool is None else self._pool.to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with that one."""
        device = self._imagination.device  # that of the checkpoint may be another
        self._pool = TensorDict(state, [len(state["observation"])]).to(device) if state else None
