"""Running statistics, and the normaliser of states that the agent's networks share."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_mage.modules.reading import read_entries

# Below this standard deviation a feature counts as constant and is only centred.
MIN_STD = 1e-6


class RunningStatistics(nn.Module):
    """Mean and population standard deviation of a stream of vectors.

    Buffers change in place, so that whoever holds this module, or its tensors, sees every update.
    A feature whose standard deviation is 0 or below ``min_std`` gets 1, so that it is centred only.

    Updates are computed in float64. What the buffers' dtype rounds away of mean and variance is
    kept beside them (``mean_rest``, ``var_rest``), so that small steps of a large mean add up; a
    pair, and no buffer in float64, since it survives every conversion of the module's dtype.

    Args:
        size: number of features ``D``.
        device: device of the buffers.
        dtype: floating dtype of the buffers.
        min_std: below it a feature counts as constant.

    Example:
        >>> statistics = RunningStatistics(1)
        >>> statistics.update(torch.tensor([[1.0], [3.0]]))
        >>> statistics.mean, statistics.std
        (tensor([2.]), tensor([1.]))
        >>> statistics.normalize(torch.tensor([4.0]))
        tensor([2.])
    """

    count: Tensor
    mean: Tensor
    var: Tensor
    std: Tensor
    mean_rest: Tensor
    var_rest: Tensor

    def __init__(
        self,
        size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        min_std: float = MIN_STD,
    ) -> None:
        super().__init__()
        self.min_std = min_std
        if size < 1:
            raise ValueError(f"size must be a positive number of features, got {size}.")
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("mean", torch.zeros(size, device=device, dtype=dtype))
        self.register_buffer("var", torch.zeros(size, device=device, dtype=dtype))
        self.register_buffer("std", torch.ones(size, device=device, dtype=dtype))
        self.register_buffer("mean_rest", torch.zeros(size, device=device, dtype=dtype))
        self.register_buffer("var_rest", torch.zeros(size, device=device, dtype=dtype))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Takes in new vectors, each to be passed once (Chan et al.'s parallel update).

        Args:
            values: ``[*B, D]``.

        Raises:
            ValueError: the last dimension is not ``D``.
        """
        self._check_features(values)
        values = values.reshape(-1, values.shape[-1]).to(self.mean.device, torch.float64)
        if not len(values):
            return
        total = self.count + len(values)
        share = len(values) / total.double()
        var, mean = torch.var_mean(values, 0, correction=0)
        shift = mean - self._exact_mean
        var = self._exact_var.lerp(var, share).add_(share * (1 - share) * shift.square())
        _keep(self.var, self.var_rest, var)
        _keep(self.mean, self.mean_rest, self._exact_mean + share * shift)
        self.count.copy_(total)
        std = var.sqrt()
        self.std.copy_(torch.where(self._is_constant(std), torch.ones_like(std), std))

    @property
    def _exact_mean(self) -> Tensor:
        return self.mean.double() + self.mean_rest.double()

    @property
    def _exact_var(self) -> Tensor:
        return self.var.double() + self.var_rest.double()

    @property
    def constant(self) -> Tensor:
        """Which features two vectors or more have shown not to change, boolean ``[D]``."""
        return (self.count > 1) & self._is_constant(self._exact_var.sqrt())

    def _is_constant(self, std: Tensor) -> Tensor:
        return (std < self.min_std) | (std.to(self.std.dtype) == 0)

    def normalize(self, values: Tensor) -> Tensor:
        """Centres and scales ``values`` of shape ``[*B, D]``.

        Raises:
            ValueError: the last dimension is not ``D``.
        """
        self._check_features(values)
        return (values - self._center(values)) / self.std

    def denormalize(self, values: Tensor) -> Tensor:
        """Inverse of :meth:`normalize`."""
        return values * self.std + self._center(values)

    def _center(self, values: Tensor) -> Tensor:
        """The mean; for float64 values, which may lie close to a large one, with all its digits."""
        exact = values.dtype == torch.float64 != self.mean.dtype
        return self._exact_mean if exact else self.mean

    def _check_features(self, values: Tensor) -> None:
        if values.shape[-1:] != self.mean.shape:
            raise ValueError(
                f"expected vectors of {self.mean.shape[0]} features, got shape "
                f"{tuple(values.shape)}; the last dimension must be the feature dimension."
            )


def _keep(buffer: Tensor, rest: Tensor, exact: Tensor) -> None:
    """Stores float64 values in place: what the dtype holds of them, and what it rounds away."""
    buffer.copy_(exact)
    rest.copy_(exact - buffer.double())


class Normalizer(TensorDictModuleBase):
    """Writes the normalised observation beside the raw one.

    One normaliser serves all of an agent: in front of the actor, in front of the loss, and, through
    :meth:`on`, behind the dynamics in the world model. It holds the only copy of the statistics;
    actor and critics read ``out_key`` and hold none, so nothing of them goes stale.

    Args:
        obs_dim: number of observation features.
        in_key: where the raw observation ``[*B, D]`` is read.
        out_key: where the normalised observation ``[*B, D]`` is written.
        device: device of the statistics.
        dtype: dtype of the statistics.

    Example:
        >>> from tensordict import TensorDict
        >>> normalizer = Normalizer(2)
        >>> normalizer.update(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
        >>> normalizer(TensorDict(observation=torch.tensor([2.0, 1.0])))["normalized_observation"]
        tensor([ 1., -1.])
    """

    def __init__(
        self,
        obs_dim: int,
        *,
        in_key: NestedKey = "observation",
        out_key: NestedKey = "normalized_observation",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.statistics = RunningStatistics(obs_dim, device=device, dtype=dtype)
        self.in_keys = [in_key]
        self.out_keys = [out_key]

    def on(self, in_key: NestedKey, out_key: NestedKey) -> Normalizer:
        """The same normaliser, with the same statistics, on other keys."""
        twin = Normalizer(self.statistics.mean.shape[0], in_key=in_key, out_key=out_key)
        twin.statistics = self.statistics
        return twin

    def update(self, observation: Tensor) -> None:
        """Takes in new observations ``[*B, D]``, each to be passed once."""
        self.statistics.update(observation)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the normalised observation into ``tensordict``."""
        (observation,) = read_entries(tensordict, self.in_keys, "the normalizer")
        return tensordict.set(self.out_keys[0], self.statistics.normalize(observation))
