"""The learned dynamics: an ensemble of Gaussian networks over state differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_mage.functional import bounded_log_variance, mixture_moments
from torchrl_mage.modules.ensemble_world_model import READER, EnsembleWorldModel
from torchrl_mage.modules.normalizer import RunningStatistics
from torchrl_mage.modules.reading import read_entries

Sampling = Literal["balanced", "independent", "moments", "mean"]


class GaussianEnsembleWorldModel(EnsembleWorldModel):
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

    samplings = get_args(Sampling)

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
        if not log_var_bounds[0] < log_var_bounds[1]:
            raise ValueError(f"log_var_bounds must be (low, high), got {log_var_bounds}.")
        super().__init__(
            obs_dim,
            action_dim,
            2 * obs_dim,
            ensemble_size=ensemble_size,
            num_cells=num_cells,
            activation_class=activation_class,
            sampling=sampling,
            in_keys=in_keys,
            out_keys=out_keys,
            device=device,
            dtype=dtype,
        )
        self.log_var_bounds = log_var_bounds
        self.observation_statistics = RunningStatistics(obs_dim, device=device, dtype=dtype)
        self.difference_statistics = RunningStatistics(obs_dim, device=device, dtype=dtype)

    def update_normalizer(self, tensordict: TensorDictBase) -> None:
        """Takes the transitions of ``tensordict`` into the statistics, each to be passed once."""
        keys = (*self.in_keys, *self.out_keys)
        observation, action, next_observation = read_entries(tensordict, keys, READER)
        self.check_shapes(observation, action, next_observation)
        self.observation_statistics.update(observation)
        self.action_statistics.update(action)
        # In float64, since unsigned integers would wrap around.
        self.difference_statistics.update(next_observation.double() - observation.double())

    def encoded(self, observation: Tensor) -> Tensor:
        """The normalised observation, ``[*B, D]``."""
        return self.observation_statistics.normalize(observation)

    def normalized_difference(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        """What the network predicts, ``[*B, D]``."""
        if not observation.is_floating_point():  # unsigned ones would wrap around
            observation = observation.to(self.dtype)
        return self.difference_statistics.normalize(next_observation - observation)

    def gaussian(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the normalised difference.

        Args:
            output: of the networks, ``[*B, 2 D]``.

        Returns:
            Two tensors of shape ``[*B, D]``.
        """
        mean, raw = output.chunk(2, -1)
        return mean, bounded_log_variance(raw, *self.log_var_bounds)

    def predict(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Every member's Gaussian over the next observation, in raw units.

        Args:
            observation: ``[*B, D]``.
            action: ``[*B, A]``.

        Returns:
            Mean and variance, each ``[E, *B, D]``.
        """
        input_BI = self.input_rows(observation, action)
        output_EBO = self.network(input_BI.expand(self.ensemble_size, -1, -1))
        mean_EBD, log_var_EBD = self.gaussian(output_EBO)
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

        input_BI = self.input_rows(observation, action)
        mean_BD, log_var_BD = self.gaussian(self.one_members_output(input_BI, member))
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
