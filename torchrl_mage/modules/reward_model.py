"""What a transition pays and whether it ends, learned where they are not known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from torchrl_mage.modules.mlp import xavier_mlp
from torchrl_mage.modules.normalizer import RunningStatistics
from torchrl_mage.modules.reading import read_entries

TRANSITION = ("observation", "action", ("next", "observation"))


class _TransitionNetwork(TensorDictModuleBase):
    """One number from the normalised states and the action of a transition."""

    reader: str

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_cells: Sequence[int],
        in_keys: Sequence[NestedKey],
        out_keys: Sequence[NestedKey],
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(in_keys), list(out_keys)
        self.network = xavier_mlp(2 * obs_dim + action_dim, 1, num_cells, device=device)
        self.observation_statistics = RunningStatistics(obs_dim, device=device)

    def update_normalizer(self, tensordict: TensorDictBase) -> None:
        """Takes the transitions of ``tensordict`` into the statistics, each to be passed once."""
        (observation,) = read_entries(tensordict, self.in_keys[:1], self.reader)
        self.observation_statistics.update(observation)

    def _truth(self, tensordict: TensorDictBase) -> Tensor:
        """What the environment said, ``[*B, 1]``."""
        return read_entries(tensordict, self.out_keys[:1], self.reader)[0]

    def _output(self, tensordict: TensorDictBase) -> Tensor:
        entries = read_entries(tensordict, self.in_keys, self.reader)
        observation, action, next_observation = entries
        normalize = self.observation_statistics.normalize
        return self.network(
            torch.cat([normalize(observation), action, normalize(next_observation)], -1)
        )


class RewardModel(_TransitionNetwork):
    """The reward ``r(s, a, s')``, trained by least squares (arXiv:2004.14309, appendices B.2, D.2).

    As long as all rewards seen were equal (two or more), it predicts just that reward.

    Args:
        obs_dim: number of observation features ``D``.
        action_dim: number of action features ``A``.
        num_cells: width of each hidden layer.
        in_keys: keys of the observation, the action and the next observation.
        out_keys: key of the reward.
        device: device of parameters and statistics.

    Example:
        >>> from tensordict import TensorDict
        >>> td = TensorDict({"observation": torch.zeros(5, 3), "action": torch.zeros(5, 1)}, [5])
        >>> td["next", "observation"] = torch.zeros(5, 3)
        >>> RewardModel(3, 1, num_cells=[8])(td)["next", "reward"].shape
        torch.Size([5, 1])
    """

    reader = "the reward model"

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        num_cells: Sequence[int] = (256,) * 3,
        in_keys: Sequence[NestedKey] = TRANSITION,
        out_keys: Sequence[NestedKey] = (("next", "reward"),),
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(obs_dim, action_dim, num_cells, in_keys, out_keys, device)
        # However little a task pays, its differences are what is to be learned.
        self.reward_statistics = RunningStatistics(1, device=device, min_std=0.0)

    def update_normalizer(self, tensordict: TensorDictBase) -> None:
        """Takes the transitions of ``tensordict`` into the statistics, each to be passed once."""
        reward = self._truth(tensordict)  # before anything is taken in
        super().update_normalizer(tensordict)
        self.reward_statistics.update(reward)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the reward ``[*B, 1]``."""
        statistics = self.reward_statistics
        # What never varied is not the network's to say: its unit would be 1, whatever the task's.
        normalized = self._output(tensordict).masked_fill(statistics.constant, 0.0)
        return tensordict.set(self.out_keys[0], statistics.denormalize(normalized))

    def loss(self, tensordict: TensorDictBase) -> Tensor:
        """Mean squared error of the normalised reward."""
        target = self.reward_statistics.normalize(self._truth(tensordict))
        return mse_loss(self._output(tensordict), target)


class TerminationModel(_TransitionNetwork):
    """The probability that a transition ends the episode, trained by maximum likelihood.

    :class:`~torchrl_mage.MAGELoss` masks its target by it, differentiably.

    Args:
        obs_dim: number of observation features ``D``.
        action_dim: number of action features ``A``.
        num_cells: width of each hidden layer.
        in_keys: keys of the observation, the action and the next observation.
        out_keys: keys of the boolean, true above one half, and of the probability.
        device: device of parameters and statistics.

    Example:
        >>> from tensordict import TensorDict
        >>> td = TensorDict({"observation": torch.zeros(5, 3), "action": torch.zeros(5, 1)}, [5])
        >>> td["next", "observation"] = torch.zeros(5, 3)
        >>> TerminationModel(3, 1, num_cells=[8])(td)["next", "termination_probability"].shape
        torch.Size([5, 1])
    """

    reader = "the termination model"

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        num_cells: Sequence[int] = (256,) * 3,
        in_keys: Sequence[NestedKey] = TRANSITION,
        out_keys: Sequence[NestedKey] = (
            ("next", "terminated"),
            ("next", "termination_probability"),
        ),
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(obs_dim, action_dim, num_cells, in_keys, out_keys, device)
        # Most transitions end nothing; nor does the model, before it has seen one that does.
        nn.init.constant_(self.network[-1].bias, -4.0)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes whether the episode ends, and the probability, each ``[*B, 1]``."""
        probability = self._output(tensordict).sigmoid()
        terminated, likely = self.out_keys
        return tensordict.set(likely, probability).set(terminated, probability > 0.5)

    def loss(self, tensordict: TensorDictBase) -> Tensor:
        """Negative log-likelihood of whether each transition ended."""
        logit = self._output(tensordict)
        return binary_cross_entropy_with_logits(logit, self._truth(tensordict).to(logit.dtype))
