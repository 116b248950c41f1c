"""TD(0) targets that are held in the range of what is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.value import TD0Estimator


class BoundedTD0Estimator(TD0Estimator):
    r"""TD(0) whose targets no return can contradict: held between the least and the most possible.

    .. math:: y = \text{clip}(r + \gamma (1 - d) V(s'),\; \text{low},\; \text{high})

    Critics that believe in more than any policy can earn teach it to each other through their
    targets; a bound on those ends it. It holds the value alone: the gradient of ``y`` is that of
    the target that is not bounded, as a bound would tell a critic trained on action-gradients that
    all actions are alike.

    Composes with any loss that takes a value estimator; a loss of several imagined steps bounds
    each step's. An entropy bonus is not part of the range, so that a soft value is bounded where
    the plain one is.

    Args:
        gamma: discount factor in [0, 1).
        bounds: the least and the most, two numbers, or a function that returns them as tensors,
            such as :meth:`RewardScaler.value_bounds <torchrl_mage.RewardScaler.value_bounds>`,
            asked anew for each target.
        **others: as of TorchRL's ``TD0Estimator``.

    Raises:
        ValueError: the numbers are no interval.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> estimator = BoundedTD0Estimator(gamma=0.9, bounds=(0.0, 10.0))
        >>> td = TensorDict(
        ...     next={
        ...         "reward": torch.ones(2, 1),
        ...         "done": torch.zeros(2, 1, dtype=torch.bool),
        ...         "state_value": torch.tensor([[5.0], [12.0]]),
        ...     },
        ...     batch_size=[2],
        ... )
        >>> estimator.value_estimate(td).squeeze(-1)
        tensor([ 5.5000, 10.0000])
    """

    def __init__(
        self,
        *,
        gamma: float | Tensor,
        bounds: tuple[float, float] | Callable[[], tuple[Tensor, Tensor]],
        **others: Any,
    ) -> None:
        super().__init__(**{"gamma": gamma, "value_network": None} | others)
        if not callable(bounds):
            low, high = bounds
            if not low < high:
                raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}.")
        self.bounds = bounds

    def value_estimate(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> Tensor:
        """The target, as of TorchRL's ``TD0Estimator``, bounded."""
        target = super().value_estimate(tensordict, *args, **kwargs)
        bounds: Any = self.bounds() if callable(self.bounds) else self.bounds
        constant = target.detach()
        return constant.clamp(*bounds) + (target - constant)
