"""Rewards in units of the value range, so that critics learn numbers of about 1 on any task."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_mage.modules.reading import read_entries


class RewardScaler(TensorDictModuleBase):
    r"""Measures the reward in the largest value that the rewards seen imply.

    .. math:: r \leftarrow (r - c) / V, \qquad V = \max |r - c| / (1 - \gamma)

    No return of such rewards is larger than ``V``, so behind the reward in a world model this makes
    the values of actor and critics lie in [-1, 1], whatever the task pays: TD errors, learning
    rates, a temperature and a limit on what diverges mean the same everywhere. It composes with any
    loss, since a value function of scaled rewards is the scaled value function.

    With ``centered``, ``c`` is the mean of the rewards seen (reward centering, arXiv:2405.09999):
    the values' common offset, ``c / (1 - gamma)``, need not spread through the critics' targets,
    which takes them longest. It is right where an episode has no end but a time limit; else it
    would pay for ending or for going on, and ``c`` is 0.

    Args:
        gamma: discount factor in [0, 1).
        centered: whether to take the mean off.
        in_keys: key of the reward ``[*B, 1]``.
        out_keys: where the scaled one is written; by default in its place.
        device: device of the statistics.
        dtype: dtype of the statistics.

    Raises:
        ValueError: ``gamma`` is outside [0, 1).

    Example:
        >>> from tensordict import TensorDict
        >>> scaler = RewardScaler(0.9)
        >>> scaler.update(torch.tensor([[-4.0], [2.0]]))
        >>> td = TensorDict({("next", "reward"): torch.tensor([[2.0]])}, batch_size=[1])
        >>> scaler.value_range, scaler(td)["next", "reward"]
        (tensor(40.), tensor([[0.0500]]))
    """

    count: Tensor
    center: Tensor
    lowest: Tensor
    highest: Tensor
    value_range: Tensor

    def __init__(
        self,
        gamma: float,
        *,
        centered: bool = False,
        in_keys: tuple[NestedKey] = (("next", "reward"),),
        out_keys: tuple[NestedKey] = (("next", "reward"),),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1), got {gamma}.")
        self.in_keys, self.out_keys = list(in_keys), list(out_keys)
        self.gamma, self.centered = gamma, centered
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        for name, value in (("center", 0.0), ("lowest", 0.0), ("highest", 0.0), ("value_range", 1)):
            self.register_buffer(name, torch.full((), float(value), device=device, dtype=dtype))

    @torch.no_grad()
    def update(self, reward: Tensor) -> None:
        """Takes in rewards of the environment, of any shape, in place."""
        if not reward.numel():
            return
        reward = reward.to(self.center)
        low, high = reward.aminmax()
        first = self.count == 0
        self.lowest.copy_(torch.where(first, low, torch.minimum(self.lowest, low)))
        self.highest.copy_(torch.where(first, high, torch.maximum(self.highest, high)))
        self.count += reward.numel()
        if self.centered:
            self.center.lerp_(reward.mean(), reward.numel() / self.count.to(self.center))
        largest = torch.maximum(self.highest - self.center, self.center - self.lowest)
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
        self.value_range.copy_(largest / (1 - self.gamma))

    def value_bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the most that a value of scaled rewards may be: the worst or best for ever.

        0 is among them unless ``centered``, as an episode's end pays nothing any more. Before a
        reward was seen they are -1 and 1.
        """
        unit = self.value_range * (1 - self.gamma)
        low, high = (self.lowest - self.center) / unit, (self.highest - self.center) / unit
        if not self.centered:
            low, high = low.clamp(max=0), high.clamp(min=0)
        unseen = self.count == 0
        return torch.where(unseen, -1, low), torch.where(unseen, 1, high)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the reward in units of the value range."""
        (reward,) = read_entries(tensordict, self.in_keys, "the reward scaler")
        return tensordict.set(self.out_keys[0], (reward - self.center) / self.value_range)
