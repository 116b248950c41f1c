"""Maximum likelihood for the ensemble over categorical variables."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_mage.modules.categorical_world_model import CategoricalWorldModel
from torchrl_mage.objectives.ensemble_loss import EnsembleLoss


class CategoricalEnsembleLoss(EnsembleLoss):
    r"""Negative log-likelihood of discrete next observations under each member of an ensemble.

    .. math:: -\text{mean}_{e, b, v}\; \log p_e(s'_v \mid s, a)

    with :math:`s'_v` the next observation's variables: the counterpart of
    :class:`~torchrl_mage.GaussianEnsembleLoss` (arXiv:2004.14309, Algorithm 2) for discrete states.

    Args:
        world_model: the ensemble.
        per_member: ``True``: the tensordict has shape ``[E, *B]``, one minibatch for each member;
            ``False``: it has any shape ``[*B]``, one batch for all members.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. The mean is over members, batch and
            variables. ``"none"`` gives the mean over variables, in the tensordict's shape with
            ``per_member=True`` and of shape ``[E, *B]`` otherwise.

    Keys (see ``set_keys``): ``observation``, ``action`` and ``next_observation``, by default those
    of the world model. Writes ``loss_world_model`` (nats) and, detached, ``accuracy`` (how often
    the likeliest category was the one) and ``entropy`` (of the prediction, nats), both means over
    members, batch and variables.

    Raises:
        ValueError: the batch does not lead with one minibatch for each member, or, in eager mode,
            an observation is not one-hot.

    Example:
        >>> from tensordict import TensorDict
        >>> model = CategoricalWorldModel(3, 1, ensemble_size=4, num_cells=(16,))
        >>> loss = CategoricalEnsembleLoss(model, per_member=False)
        >>> data = TensorDict(
        ...     {
        ...         "observation": torch.eye(3),
        ...         "action": torch.zeros(3, 1),
        ...         "next": {"observation": torch.eye(3)},
        ...     },
        ...     batch_size=[3],
        ... )
        >>> loss(data)["loss_world_model"].shape
        torch.Size([])
    """

    fits = CategoricalWorldModel
    out_keys = ["loss_world_model", "accuracy", "entropy"]  # noqa: RUF012

    world_model: CategoricalWorldModel

    def _target(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.world_model.check_one_hot(self.tensor_keys.next_observation, next_observation)
        return next_observation

    def _likelihood(
        self, input_EBI: Tensor, target_EBD: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.world_model
        nll, hit, entropy = [], [], []
        for logits, target in zip(
            model.variables(model.network(input_EBI)), model.variables(target_EBD), strict=True
        ):
            log_p = logits.log_softmax(-1)
            nll.append(-(target * log_p).sum(-1))
            hit.append((log_p.argmax(-1) == target.argmax(-1)).to(log_p.dtype))
            entropy.append(-(log_p.exp() * log_p).sum(-1).detach())
        return torch.stack(nll, -1).mean(-1), {
            "accuracy": torch.stack(hit).mean(),
            "entropy": torch.stack(entropy).mean(),
        }
