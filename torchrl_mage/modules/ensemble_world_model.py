"""What every ensemble of learned dynamics shares: its inputs, and which member predicts what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_mage.functional import balanced_slots, grouped_slots
from torchrl_mage.modules.ensemble import EnsembleMLP
from torchrl_mage.modules.normalizer import RunningStatistics

READER = "the world model"


class EnsembleWorldModel(TensorDictModuleBase):
    """An ensemble of networks over state and action, each element predicted by one member alone.

    A subclass says in :meth:`encoded` how its networks see an observation, and draws the next one
    from what they write.

    Args:
        obs_dim: number of observation features ``D``.
        action_dim: number of action features ``A``.
        out_features: number of outputs ``O`` of each network.
        ensemble_size: number of members ``E``.
        num_cells: width of each hidden layer.
        activation_class: activation between layers.
        sampling: one of the class's ``samplings``.
        in_keys: keys of the observation and the action.
        out_keys: key of the next observation.
        device: device of parameters and statistics.
        dtype: their floating dtype.

    Raises:
        ValueError: a size or ``sampling`` is out of range, or there are too many or too few keys.
    """

    member_key = "ensemble_member"
    samplings: ClassVar[tuple[str, ...]] = ("balanced", "independent")

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        out_features: int,
        *,
        ensemble_size: int,
        num_cells: Sequence[int],
        activation_class: type[nn.Module],
        sampling: str,
        in_keys: Sequence[NestedKey],
        out_keys: Sequence[NestedKey],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
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
        if sampling not in self.samplings:
            raise ValueError(f"sampling must be one of {self.samplings}, got {sampling!r}.")
        if len(in_keys) != 2 or len(out_keys) != 1:
            raise ValueError(
                "in_keys must be those of the observation and the action, out_keys that of the "
                f"next observation; got {in_keys} and {out_keys}."
            )
        self.in_keys = list(in_keys)
        self.out_keys = list(out_keys)
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.ensemble_size = ensemble_size
        self.sampling = sampling
        self.network = EnsembleMLP(
            ensemble_size,
            obs_dim + action_dim,
            out_features,
            num_cells=num_cells,
            activation_class=activation_class,
            device=device,
            dtype=dtype,
        )
        self.action_statistics = RunningStatistics(action_dim, device=device, dtype=dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of parameters and statistics."""
        return self.action_statistics.mean.dtype

    def update_normalizer(self, tensordict: TensorDictBase) -> None:
        """Takes the transitions of ``tensordict`` into the statistics, each to be passed once."""
        raise NotImplementedError

    def encoded(self, observation: Tensor) -> Tensor:
        """The observation ``[*B, D]`` as the networks see it."""
        raise NotImplementedError

    def check_shapes(
        self, observation: Tensor, action: Tensor, next_observation: Tensor | None = None
    ) -> None:
        """Refuses what is not ``[*B, D]``, ``[*B, A]`` and, if given, ``[*B, D]``."""
        for name, value, size in (
            (self.in_keys[0], observation, self.obs_dim),
            (self.in_keys[1], action, self.action_dim),
        ):
            if value.shape[-1:] != (size,):
                raise ValueError(
                    f"the world model expects {size} features under {name!r}, got shape "
                    f"{tuple(value.shape)}; the last dimension must be the features'."
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
        return torch.cat([self.encoded(observation), self.action_statistics.normalize(action)], -1)

    def input_rows(self, observation: Tensor, action: Tensor) -> Tensor:
        """The network's input with one batch dimension, ``[B, D + A]``, also of no elements."""
        input_BI = self.normalized_input(observation, action)
        return input_BI.reshape(input_BI.shape[:-1].numel(), input_BI.shape[-1])

    def one_members_output(self, input_BI: Tensor, member: Tensor | None) -> Tensor:
        """Each element's output ``[B, O]``, by one member alone.

        Args:
            input_BI: normalised inputs, ``[B, D + A]``.
            member: each element's member, int64 of ``B`` elements; ``None`` draws them as
                ``sampling`` says.

        Raises:
            ValueError: there is no such member.
        """
        size, device = self.ensemble_size, input_BI.device
        if member is not None:
            slot_B, rows = grouped_slots(self._checked(member.reshape(-1)), size)
        elif self.sampling == "balanced":
            slot_B, rows = balanced_slots(len(input_BI), size, device)
        else:
            slot_B, rows = grouped_slots(torch.randint(size, (len(input_BI),), device=device), size)
        # Slots that no element fills compute element 0 and are never read.
        element_of_slot = slot_B.new_zeros(size * rows).scatter(
            0, slot_B, torch.arange(len(slot_B), device=slot_B.device)
        )
        dealt_EBI = input_BI[element_of_slot].unflatten(0, (size, rows))
        return self.network(dealt_EBI).flatten(0, 1)[slot_B]

    def _checked(self, member_B: Tensor) -> Tensor:
        if not ((member_B >= 0) & (member_B < self.ensemble_size)).all():
            raise ValueError(
                f"{self.member_key!r} must lie in [0, {self.ensemble_size}), got values from "
                f"{member_B.min().item()} to {member_B.max().item()}."
            )
        return member_B
