"""The losses of a learned reward and a learned termination."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_mage.modules.reward_model import RewardModel, TerminationModel


class TransitionLoss(LossModule):
    """Least squares of a learned reward, maximum likelihood of a learned termination.

    Args:
        model: the :class:`~torchrl_mage.RewardModel` or :class:`~torchrl_mage.TerminationModel`,
            trained in place.

    Writes ``loss_reward`` or ``loss_termination``, the mean over all transitions ``[*B]``.

    Example:
        >>> import torch
        >>> td = TensorDict({"observation": torch.zeros(5, 3), "action": torch.zeros(5, 1)}, [5])
        >>> td["next"] = TensorDict(observation=torch.zeros(5, 3), reward=torch.ones(5, 1))
        >>> loss = TransitionLoss(RewardModel(3, 1, num_cells=[8]))
        >>> loss(td)["loss_reward"].shape
        torch.Size([])
    """

    model: RewardModel | TerminationModel
    model_params: TensorDictParams
    target_model_params: TensorDictParams

    def __init__(self, model: RewardModel | TerminationModel) -> None:
        super().__init__()
        kind = "reward" if isinstance(model, RewardModel) else "termination"
        self.name = f"loss_{kind}"
        self.in_keys = [*model.in_keys, model.out_keys[0]]
        self.out_keys = [self.name]
        self.convert_to_functional(model, "model")

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss."""
        loss, _ = self.error(tensordict)
        return TensorDict({self.name: loss})

    def error(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and, as of every loss here, its metadata: none."""
        with self.model_params.to_module(self.model, preserve_module_state=False):
            return self.model.loss(tensordict), {}
