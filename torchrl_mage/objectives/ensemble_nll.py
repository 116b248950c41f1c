"""Maximum likelihood for the ensemble world model, over minibatches of its members' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_mage.functional import gaussian_nll
from torchrl_mage.modules.world_model import GaussianEnsembleWorldModel
from torchrl_mage.objectives.ensemble_loss import EnsembleLoss


class GaussianEnsembleLoss(EnsembleLoss):
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

    fits = GaussianEnsembleWorldModel
    out_keys = ["loss_world_model", "mean_squared_error", "log_variance"]  # noqa: RUF012

    world_model: GaussianEnsembleWorldModel

    def _target(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        return self.world_model.normalized_difference(observation, next_observation)

    def _likelihood(
        self, input_EBI: Tensor, target_EBD: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.world_model
        mean_EBD, log_var_EBD = model.gaussian(model.network(input_EBI))
        return gaussian_nll(mean_EBD, log_var_EBD, target_EBD).mean(-1), {
            "mean_squared_error": (mean_EBD.detach() - target_EBD).square().mean(),
            "log_variance": log_var_EBD.detach().mean(),
        }


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
        >>> from tensordict import TensorDict
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
