"""What the likelihoods of all ensembles share: minibatches of the members' own, masks, keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_mage.modules.ensemble_world_model import EnsembleWorldModel
from torchrl_mage.objectives.arguments import check_choice
from torchrl_mage.objectives.contract import check_dtype, read_entry


class EnsembleLoss(LossModule):
    """Negative log-likelihood of observed transitions under each member of an ensemble.

    A subclass says what is predicted (``_target``) and how likely it is (``_likelihood``).

    Args:
        world_model: the ensemble, of the kind that the class ``fits``.
        per_member: ``True``: the tensordict has shape ``[E, *B]``, one minibatch for each member;
            ``False``: it has any shape ``[*B]``, one batch for all members.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, the latter in the tensordict's shape with
            ``per_member=True`` and of shape ``[E, *B]`` otherwise.

    Raises:
        ValueError: the world model is of another kind, or the batch does not lead with one
            minibatch for each member.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts."""

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        next_observation: NestedKey = ("next", "observation")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    fits: ClassVar[type[EnsembleWorldModel]]

    world_model: EnsembleWorldModel
    world_model_params: TensorDictParams
    target_world_model_params: TensorDictParams

    def __init__(
        self,
        world_model: EnsembleWorldModel,
        *,
        per_member: bool = True,
        reduction: str | None = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum", "none", None))
        if not isinstance(world_model, self.fits):
            raise ValueError(
                f"{type(self).__name__} fits a {self.fits.__name__}, got "
                f"{type(world_model).__name__}; pass the ensemble alone, not the sequence it is in."
            )
        self.convert_to_functional(world_model, "world_model")
        self.per_member = per_member
        self.reduction = reduction or "mean"
        observation, action = world_model.in_keys
        self.set_keys(
            observation=observation, action=action, next_observation=world_model.out_keys[0]
        )

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """A model's likelihood has no value estimator."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """The keys of a transition."""
        keys = self.tensor_keys
        return [keys.observation, keys.action, keys.next_observation]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss of the transitions in ``tensordict``."""
        loss, metadata = self.nll(tensordict)
        return TensorDict(loss_world_model=loss, **metadata)

    def nll(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its detached diagnostics, for a trainer that wants no tensordict."""
        observation, action, next_observation = (
            self._read(tensordict, key) for key in self.in_keys
        )
        model = self.world_model
        batch = observation.shape[:-1]
        model.check_shapes(observation, action, next_observation)
        if self.per_member and batch[:1] != (model.ensemble_size,):
            raise ValueError(
                f"per_member=True needs one minibatch for each of the {model.ensemble_size} "
                f"members, shape [{model.ensemble_size}, *batch]; got {list(batch)}. Pass "
                "per_member=False to train all members on one batch."
            )
        if not batch.numel():
            raise ValueError(f"the tensordict holds no transitions (batch size {list(batch)}).")
        # By the model's own statistics: it may have been moved, which replaces buffers, since.
        input_ = model.normalized_input(observation, action)
        target = self._target(observation, next_observation)
        if not self.per_member:
            input_, target = (x.expand(model.ensemble_size, *x.shape) for x in (input_, target))
        rows = batch[1:].numel() if self.per_member else batch.numel()
        shape = target.shape[:-1]
        input_, target = (
            x.reshape(model.ensemble_size, rows, x.shape[-1]) for x in (input_, target)
        )
        with self.world_model_params.to_module(model, preserve_module_state=False):
            loss, metadata = self._likelihood(input_, target)
        loss = loss.reshape(shape)
        if not self.per_member:  # the members last, where a mask of the batch broadcasts over them
            loss = loss.movedim(0, -1)
        loss = self._reduce_loss(loss, tensordict)
        if not self.per_member and self.reduction == "none":
            loss = loss.movedim(-1, 0)
        self._clear_weakrefs(tensordict, "world_model_params", "target_world_model_params")
        return loss, metadata

    def _target(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        """What the networks predict of a next observation ``[*B, D]``, in its shape."""
        raise NotImplementedError

    def _likelihood(
        self, input_EBI: Tensor, target_EBD: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each member's negative log-likelihood ``[E, B]`` of its targets, and its metadata."""
        raise NotImplementedError

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        value = read_entry(tensordict, key, "the world model's loss reads")
        check_dtype(key, value, self.world_model.dtype, "the world model")
        return value

    def _apply(self, fn: Any, recurse: bool = True) -> EnsembleLoss:
        """Moves the ensemble too; its statistics, and no older ones, are the loss's again."""
        statistics = {name: fn(buffer) for name, buffer in self.world_model.named_buffers()}
        super()._apply(fn)
        self.world_model_params.to_module(self.world_model)
        for name, buffer in self.world_model.named_buffers():
            buffer.data.copy_(statistics[name])
        return self
