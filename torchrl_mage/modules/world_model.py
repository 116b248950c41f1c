"""The learned dynamics: an ensemble of Gaussian networks over state differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_mage.functional import (
    balanced_slots,
    bounded_log_variance,
    grouped_slots,
    mixture_moments,
)
from torchrl_mage.modules.ensemble import EnsembleMLP
from torchrl_mage.modules.normalizer import RunningStatistics
from torchrl_mage.modules.reading import read_entries

Sampling = Literal["balanced", "independent", "moments", "mean"]
READER = "the world model"


class GaussianEnsembleWorldModel(TensorDictModuleBase):
    r"""An ensemble of Gaussian models of the next observation, differentiable in state and action.

    Each member maps the normalised state and action to a Gaussian over the normalised state
    difference, with its log-variance squashed into ``log_var_bounds``:

    .. math:: s' = s + m_\Delta + \sigma_\Delta (\mu_e(s, a) + \sigma_e(s, a)\,\epsilon)

    "Sampling from the ensemble by first randomly selecting one of the members and then sampling an
    estimated difference" (arXiv:2004.14309, appendix D.2), reparameterised so that the
    action-gradient flows (appendix C).

    Args:
        obs_dim: number of observation features ``D``.
        action_dim: number of action features ``A``.
        ensemble_size: number of members ``E``.
        num_cells: width of each hidden layer.
        activation_class: activation between layers.
        log_var_bounds: smallest and largest log-variance, in units of the normalised difference.
        sampling: how :meth:`forward` draws the next observation. ``"balanced"``: a random equal
            partition of the batch over the members, at one member's work for each element;
            ``"independent"``: an i.i.d. member for each element, the groups padded to the largest;
            ``"moments"``: one Gaussian with the mixture's mean and variance; ``"mean"``: the
            mixture's mean. Only ``"balanced"`` is meant to be compiled: the groups of
            ``"independent"`` are ragged.
        in_keys: keys of the observation and the action.
        out_keys: key of the next observation.
        device: device of parameters and statistics.
        dtype: their floating dtype.

    :meth:`forward` leaves a feature whose difference never changed in the data as it was, but for
    that difference: a goal, say, or an object that nobody has touched.

    A tensordict with an entry ``"ensemble_member"`` (int64, ``[*B, 1]``) chooses each element's
    member itself: the trajectory sampling of :class:`~torchrl_mage.ModelBasedEnv`.

    Randomness comes from the global generator: first the members, then the Gaussian noise.

    Raises:
        ValueError: a size, a bound or ``sampling`` is out of range, or an input's last dimension is
            not the one announced.

    Example:
        >>> from tensordict import TensorDict
        >>> model = GaussianEnsembleWorldModel(3, 1, ensemble_size=4, num_cells=(16,))
        >>> state = TensorDict(observation=torch.zeros(10, 3), action=torch.zeros(10, 1))
        >>> model(state)["next", "observation"].shape
        torch.Size([10, 3])
        >>> mean, var = model.predict(torch.zeros(10, 3), torch.zeros(10, 1))
        >>> mean.shape, var.shape
        (torch.Size([4, 10, 3]), torch.Size([4, 10, 3]))
    """

    member_key = "ensemble_member"

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        ensemble_size: int = 8,
        num_cells: Sequence[int] = (512,) * 4,
        activation_class: type[nn.Module] = nn.SiLU,
        log_var_bounds: tuple[float, float] = (-5.0, -1.0),
        sampling: Sampling = "balanced",
        in_keys: Sequence[NestedKey] = ("observation", "action"),
        out_keys: Sequence[NestedKey] = (("next", "observation"),),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("obs_dim", obs_dim),
            ("action_dim", action_dim),
            ("ensemble_size", ensemble_size),
            *(("num_cells", width) for width in num_cells),
        ):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if not log_var_bounds[0] < log_var_bounds[1]:
            raise ValueError(f"log_var_bounds must be (low, high), got {log_var_bounds}.")
        if sampling not in get_args(Sampling):
            raise ValueError(f"sampling must be one of {get_args(Sampling)}, got {sampling!r}.")
        if len(in_keys) != 2 or len(out_keys) != 1:
            raise ValueError(
                "in_keys must be those of the observation and the action, out_keys that of the "
                f"next observation; got {in_keys} and {out_keys}."
            )
        self.in_keys = list(in_keys)
        self.out_keys = list(out_keys)
        self.ensemble_size = ensemble_size
        self.log_var_bounds = log_var_bounds
        self.sampling = sampling
        self.network = EnsembleMLP(
            ensemble_size,
            obs_dim + action_dim,
            2 * obs_dim,
            num_cells=num_cells,
            activation_class=activation_class,
            device=device,
            dtype=dtype,
        )
        self.observation_statistics = RunningStatistics(obs_dim, device=device, dtype=dtype)
        self.action_statistics = RunningStatistics(action_dim, device=device, dtype=dtype)
        self.difference_statistics = RunningStatistics(obs_dim, device=device, dtype=dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of parameters and statistics."""
        return self.difference_statistics.mean.dtype

    def update_normalizer(self, tensordict: TensorDictBase) -> None:
        """Takes the transitions of ``tensordict`` into the statistics, each to be passed once."""
        keys = (*self.in_keys, *self.out_keys)
        observation, action, next_observation = read_entries(tensordict, keys, READER)
        self.check_shapes(observation, action, next_observation)
        self.observation_statistics.update(observation)
        self.action_statistics.update(action)
        # In float64, since unsigned integers would wrap around.
        self.difference_statistics.update(next_observation.double() - observation.double())

    def check_shapes(
        self, observation: Tensor, action: Tensor, next_observation: Tensor | None = None
    ) -> None:
        """Refuses what is not ``[*B, D]``, ``[*B, A]`` and, if given, ``[*B, D]``."""
        for name, value, statistics in (
            (self.in_keys[0], observation, self.observation_statistics),
            (self.in_keys[1], action, self.action_statistics),
        ):
            if value.shape[-1:] != statistics.mean.shape:
                raise ValueError(
                    f"the world model expects {statistics.mean.shape[0]} features under {name!r}, "
                    f"got shape {tuple(value.shape)}; the last dimension must be the features'."
                )
        following = observation if next_observation is None else next_observation
        if action.shape[:-1] != observation.shape[:-1] or following.shape != observation.shape:
            raise ValueError(
                f"observation {tuple(observation.shape)}, action {tuple(action.shape)} and next "
                f"observation {tuple(following.shape)} do not belong together: expected [*B, D], "
                "[*B, A] and [*B, D]."
            )

    def normalized_input(self, observation: Tensor, action: Tensor) -> Tensor:
        """The network's input ``[*B, D + A]``."""
        self.check_shapes(observation, action)
        for name, value in zip(self.in_keys, (observation, action), strict=True):
            if value.dtype != self.dtype:
                raise ValueError(
                    f"the world model has dtype {self.dtype}, {name!r} {value.dtype}; convert one "
                    "of them."
                )
        return torch.cat(
            [
                self.observation_statistics.normalize(observation),
                self.action_statistics.normalize(action),
            ],
            -1,
        )

    def normalized_difference(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        """What the network predicts, ``[*B, D]``."""
        if not observation.is_floating_point():  # unsigned ones would wrap around
            observation = observation.to(self.dtype)
        return self.difference_statistics.normalize(next_observation - observation)

    def gaussian(self, input_EBI: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the normalised difference, one minibatch for each member.

        Args:
            input_EBI: normalised inputs, ``[E, B, D + A]``.

        Returns:
            Two tensors of shape ``[E, B, D]``.
        """
        mean_EBD, raw_EBD = self.network(input_EBI).chunk(2, -1)
        return mean_EBD, bounded_log_variance(raw_EBD, *self.log_var_bounds)

    def predict(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Every member's Gaussian over the next observation, in raw units.

        Args:
            observation: ``[*B, D]``.
            action: ``[*B, A]``.

        Returns:
            Mean and variance, each ``[E, *B, D]``.
        """
        input_BI = self._input_rows(observation, action)
        mean_EBD, log_var_EBD = self.gaussian(input_BI.expand(self.ensemble_size, -1, -1))
        shape = (self.ensemble_size, *observation.shape)
        scale = self.difference_statistics.std
        mean_EBD = observation + self.difference_statistics.denormalize(mean_EBD.reshape(shape))
        return mean_EBD, scale.square() * log_var_EBD.reshape(shape).exp()

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draws the next observation ``[*B, D]`` and writes it into ``tensordict``."""
        observation, action = read_entries(tensordict, self.in_keys, READER)
        member = tensordict.get(self.member_key, None)
        if member is None and self.sampling in ("moments", "mean"):
            mean, var = mixture_moments(*self.predict(observation, action))
            if self.sampling == "moments":
                mean = mean + var.sqrt() * torch.randn_like(mean)
            return tensordict.set(self.out_keys[0], self._steady(observation, mean))

        input_BI = self._input_rows(observation, action)
        size, device = self.ensemble_size, input_BI.device
        if member is not None:
            slot_B, rows = grouped_slots(self._checked(member.reshape(-1)), size)
        elif self.sampling == "balanced":
            slot_B, rows = balanced_slots(len(input_BI), size, device)
        else:
            slot_B, rows = grouped_slots(torch.randint(size, (len(input_BI),), device=device), size)
        mean_BD, log_var_BD = self._gaussian_in_slots(input_BI, slot_B, rows)
        difference_BD = mean_BD + (0.5 * log_var_BD).exp() * torch.randn_like(mean_BD)
        difference = self.difference_statistics.denormalize(
            difference_BD.reshape(observation.shape)
        )
        return tensordict.set(self.out_keys[0], self._steady(observation, observation + difference))

    def _steady(self, observation: Tensor, following: Tensor) -> Tensor:
        """The next observation, without the noise of what has always changed alike.

        The normalised difference of such a feature is in raw units, and so would its noise be, of
        0.08 or more.
        """
        steps = self.difference_statistics
        return torch.where(steps.constant, observation + steps.mean, following)

    def _input_rows(self, observation: Tensor, action: Tensor) -> Tensor:
        """The network's input with one batch dimension, ``[B, D + A]``, also of no elements."""
        input_BI = self.normalized_input(observation, action)
        return input_BI.reshape(input_BI.shape[:-1].numel(), input_BI.shape[-1])

    def _checked(self, member_B: Tensor) -> Tensor:
        if not ((member_B >= 0) & (member_B < self.ensemble_size)).all():
            raise ValueError(
                f"{self.member_key!r} must lie in [0, {self.ensemble_size}), got values from "
                f"{member_B.min().item()} to {member_B.max().item()}."
            )
        return member_B

    def _gaussian_in_slots(self, input_BI: Tensor, slot_B: Tensor, rows: int) -> tuple[Tensor, ...]:
        """Evaluates each element with one member alone, ``slot_B[b] // rows``."""
        # Slots that no element fills compute element 0 and are never read.
        element_of_slot = slot_B.new_zeros(self.ensemble_size * rows).scatter(
            0, slot_B, torch.arange(len(slot_B), device=slot_B.device)
        )
        dealt_EBI = input_BI[element_of_slot].unflatten(0, (self.ensemble_size, rows))
        return tuple(part.flatten(0, 1)[slot_B] for part in self.gaussian(dealt_EBI))
