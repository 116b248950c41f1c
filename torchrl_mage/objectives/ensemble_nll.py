"""Maximum likelihood for the ensemble world model, over minibatches of its members' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_mage.functional import gaussian_nll
from torchrl_mage.modules.world_model import GaussianEnsembleWorldModel
from torchrl_mage.objectives.arguments import check_choice
from torchrl_mage.objectives.contract import check_dtype, read_entry


class GaussianEnsembleLoss(LossModule):
    r"""Negative log-likelihood of observed transitions under each member of an ensemble.

    .. math:: \text{mean}_{e, b, d}\; (\mu_e - t)^2 / \sigma_e^2 + \log \sigma_e^2

    with ``t`` the normalised state difference (arXiv:2004.14309, Algorithm 2 and appendix D.2).

    Args:
        world_model: the ensemble.
        per_member: ``True``: the tensordict has shape ``[E, *B]``, one minibatch for each member;
            ``False``: it has any shape ``[*B]``, one batch for all members.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. The mean is over members, batch and
            features. ``"none"`` gives the mean over features, in the tensordict's shape with
            ``per_member=True`` and of shape ``[E, *B]`` otherwise.

    Keys (see ``set_keys``): ``observation``, ``action`` and ``next_observation``, by default those
    of the world model. Writes ``loss_world_model`` and, detached and in normalised units,
    ``mean_squared_error`` and ``log_variance``.

    Raises:
        ValueError: the batch does not lead with one minibatch for each member.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> model = GaussianEnsembleWorldModel(3, 1, ensemble_size=4, num_cells=(16,))
        >>> loss = GaussianEnsembleLoss(model, per_member=False)
        >>> data = TensorDict(
        ...     {
        ...         "observation": torch.zeros(10, 3),
        ...         "action": torch.zeros(10, 1),
        ...         "next": {"observation": torch.ones(10, 3)},
        ...     },
        ...     batch_size=[10],
        ... )
        >>> loss(data)["loss_world_model"].shape
        torch.Size([])
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts."""

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        next_observation: NestedKey = ("next", "observation")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_world_model", "mean_squared_error", "log_variance"]  # noqa: RUF012

    world_model: GaussianEnsembleWorldModel
    world_model_params: TensorDictParams
    target_world_model_params: TensorDictParams

    def __init__(
        self,
        world_model: GaussianEnsembleWorldModel,
        *,
        per_member: bool = True,
        reduction: str | None = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum", "none", None))
        if not isinstance(world_model, GaussianEnsembleWorldModel):
            raise ValueError(
                "GaussianEnsembleLoss fits a GaussianEnsembleWorldModel, got "
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
        target = model.normalized_difference(observation, next_observation)
        if not self.per_member:
            input_, target = (x.expand(model.ensemble_size, *x.shape) for x in (input_, target))
        rows = batch[1:].numel() if self.per_member else batch.numel()
        with self.world_model_params.to_module(model, preserve_module_state=False):
            gaussian = model.gaussian(input_.reshape(model.ensemble_size, rows, input_.shape[-1]))
        mean, log_var = (part.reshape(target.shape) for part in gaussian)
        loss = gaussian_nll(mean, log_var, target).mean(-1)
        if not self.per_member:  # the members last, where a mask of the batch broadcasts over them
            loss = loss.movedim(0, -1)
        loss = self._reduce_loss(loss, tensordict)
        if not self.per_member and self.reduction == "none":
            loss = loss.movedim(-1, 0)
        self._clear_weakrefs(tensordict, "world_model_params", "target_world_model_params")
        return loss, {
            "mean_squared_error": (mean.detach() - target).square().mean(),
            "log_variance": log_var.detach().mean(),
        }

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        value = read_entry(tensordict, key, "the world model's loss reads")
        check_dtype(key, value, self.world_model.dtype, "the world model")
        return value

    def _apply(self, fn: Any, recurse: bool = True) -> GaussianEnsembleLoss:
        """Moves the ensemble too; its statistics, and no older ones, are the loss's again."""
        statistics = {name: fn(buffer) for name, buffer in self.world_model.named_buffers()}
        super()._apply(fn)
        self.world_model_params.to_module(self.world_model)
        for name, buffer in self.world_model.named_buffers():
            buffer.data.copy_(statistics[name])
        return self


def member_minibatches(
    size: int,
    *,
    ensemble_size: int,
    batch_size: int,
    min_batches: int,
    exact: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Indices of minibatches for all members at once (appendix D.2 and the authors' code).

    Each epoch permutes the data anew for each member. An incomplete last batch is dropped unless it
    is the epoch's only one.

    Args:
        size: number of transitions.
        ensemble_size: number of members ``E``.
        batch_size: transitions in a minibatch.
        min_batches: epochs run until at least so many batches were given.
        exact: whether to stop at ``min_batches`` within an epoch.
        device: where the indices lie.

    Yields:
        int64 ``[E, min(batch_size, size)]``.

    Example:
        >>> batches = list(
        ...     member_minibatches(10, ensemble_size=2, batch_size=4, min_batches=3)
        ... )
        >>> len(batches), batches[0].shape
        (4, torch.Size([2, 4]))
    """
    if min(size, ensemble_size, batch_size, min_batches) < 1:
        raise ValueError(
            "size, ensemble_size, batch_size and min_batches must be at least 1, got "
            f"{(size, ensemble_size, batch_size, min_batches)}."
        )
    width = min(batch_size, size)
    batches_per_epoch = size // width
    given = 0
    for _ in range(math.ceil(min_batches / batches_per_epoch)):
        permutations = torch.rand(ensemble_size, size, device=device).argsort(1)
        for start in range(0, batches_per_epoch * width, width):
            if exact and given == min_batches:
                return
            given += 1
            yield permutations[:, start : start + width]


class Fitted(Protocol):
    """What is fitted: the ensemble, a learned reward or termination."""

    def update_normalizer(self, tensordict: TensorDictBase) -> None:
        """Takes transitions into its statistics."""


def fit(
    model: Fitted,
    minimize: Callable[[TensorDictBase], Any],
    data: TensorDictBase,
    *,
    new: int,
    batch_size: int,
    min_batches: int,
    exact: bool = False,
) -> None:
    """Fits a model to all transitions so far: its statistics, then whole epochs of minibatches.

    Args:
        model: the ensemble, a :class:`~torchrl_mage.RewardModel` or a
            :class:`~torchrl_mage.TerminationModel`.
        minimize: takes a step on one minibatch ``[E, batch_size]``, one row for each member.
        data: transitions ``[N]``.
        new: how many of the last are new to the statistics.
        batch_size: transitions in a minibatch.
        min_batches: as in :func:`member_minibatches`.
        exact: likewise.

    Example:
        >>> from torchrl_mage import GaussianEnsembleWorldModel
        >>> model = GaussianEnsembleWorldModel(3, 1, ensemble_size=2, num_cells=(8,))
        >>> loss = GaussianEnsembleLoss(model)
        >>> data = TensorDict(observation=torch.randn(10, 3), action=torch.randn(10, 1))
        >>> data["next", "observation"] = data["observation"] + 1
        >>> data.auto_batch_size_(1)
        TensorDict(...)
        >>> seen = []
        >>> fit(model, lambda batch: seen.append(loss(batch)["loss_world_model"]), data,
        ...     new=10, batch_size=5, min_batches=3)
        >>> len(seen)
        4
    """
    model.update_normalizer(data[max(0, len(data) - new) :])
    for index in member_minibatches(
        len(data),
        ensemble_size=getattr(model, "ensemble_size", 1),
        batch_size=batch_size,
        min_batches=min_batches,
        exact=exact,
        device=data.device,
    ):
        minimize(data[index])
