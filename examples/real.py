"""Transitions that were observed, beside those that are imagined, in the critics' loss."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer
from world_model import LearnedWorldModel

from torchrl_mage import MAGELoss

READ = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
)


class RealTransitions:
    """Adds the TD error on transitions of the buffer to the critics' loss.

    Args:
        cfg: ``critic.real_coeff``, its weight (0: imagined ones alone, as in the paper), and
            ``policy.batch_size``, how many to an update.
        loss: whose critics are trained.
        buffer: the replay buffer.
        model: knows how the loss reads a transition.
    """

    def __init__(
        self, cfg: DictConfig, loss: MAGELoss, buffer: ReplayBuffer, model: LearnedWorldModel
    ) -> None:
        self._loss, self._buffer, self._model = loss, buffer, model
        self._weight, self._count = cfg.critic.real_coeff, cfg.policy.batch_size

    def beside(self, states: TensorDictBase) -> TensorDictBase:
        """The states of an update, and under ``"real"`` the transitions that it takes."""
        if not self._weight:
            return states
        drawn = torch.randint(len(self._buffer), (self._count,))
        transitions = self._buffer[drawn].select(*READ, strict=False)
        return states.clone(False).set("real", self._model.read(transitions))

    def value_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss on both."""
        total, metadata = self._loss.value_loss(batch)
        if not self._weight:
            return total, metadata
        real, more = self._loss.real_value_loss(batch["real"])
        return total + self._weight * real, metadata | more
