"""Learned dynamics of discrete states: an ensemble of networks over categorical variables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_mage.functional import straight_through_one_hot
from torchrl_mage.modules.ensemble_world_model import READER, EnsembleWorldModel
from torchrl_mage.modules.reading import read_entries


class CategoricalWorldModel(EnsembleWorldModel):
    r"""An ensemble of models of a discrete next observation, differentiable in the action.

    The observation is a categorical variable one-hot, or several of them side by side, independent
    of each other given state and action. Each member maps the observation and the normalised action
    to the logits of the next observation's variables. :meth:`forward` draws the next observation
    from a member drawn at random, one-hot, and hands on the gradient of the draw relaxed by the
    concrete distribution (arXiv:2004.14309, appendix C; arXiv:1611.00712, arXiv:1611.01144):

    .. math::
        s' = \text{onehot} \arg\max_k (\ell_k + g_k), \qquad
        \frac{ds'}{da} := \frac{d}{da}\, \text{softmax}((\ell + g) / \tau), \quad
        g_k \sim \text{Gumbel}(0, 1)

    The draw is exact, its action-gradient biased, in two ways. At a temperature :math:`\tau > 0` it
    is the gradient of the relaxed draw's mean instead of the probabilities': an error of order
    :math:`\tau^2` (about a tenth at 0.5), at a variance of order :math:`1 / \tau`. And what the
    critic and the policy make of a change from one category to another enters by the mean of their
    slopes at both instead of by the difference of their values, at any temperature: exact, as
    :math:`\tau \to 0`, if it is linear or quadratic between them. An action that changes no
    probability has no gradient.

    Args:
        obs_dim: number of observation features ``D``, the categories of all variables.
        action_dim: number of action features ``A``.
        categories: number of categories of each variable, in the observation's order; ``None``: the
            observation is one variable.
        ensemble_size: number of members ``E``.
        num_cells: width of each hidden layer.
        activation_class: activation between layers.
        temperature: :math:`\tau` of the relaxed draw.
        sampling: how :meth:`forward` chooses the members. ``"balanced"``: a random equal partition
            of the batch over the members, at one member's work for each element;
            ``"independent"``: an i.i.d. member for each element, the groups padded to the largest.
            Only ``"balanced"`` is meant to be compiled: the groups of ``"independent"`` are ragged.
        in_keys: keys of the observation and the action.
        out_keys: key of the next observation.
        device: device of parameters and statistics.
        dtype: their floating dtype, and the observation's.

    A tensordict with an entry ``"ensemble_member"`` (int64, ``[*B, 1]``) chooses each element's
    member itself: the trajectory sampling of :class:`~torchrl_mage.ModelBasedEnv`.

    Randomness comes from the global generator: first the members, then each variable's Gumbel
    noise.

    Raises:
        ValueError: a size, the temperature or ``sampling`` is out of range, ``categories`` do not
            sum to ``obs_dim``, an input's last dimension is not the one announced, or, in eager
            mode, an observation is not one-hot.

    Example:
        >>> from tensordict import TensorDict
        >>> model = CategoricalWorldModel(5, 1, categories=(3, 2), num_cells=(16,))
        >>> observation = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]] * 10)
        >>> state = TensorDict(observation=observation, action=torch.zeros(10, 1))
        >>> drawn = model(state)["next", "observation"]
        >>> bool((drawn[:, :3].sum(-1) == 1).all() and (drawn[:, 3:].sum(-1) == 1).all())
        True
        >>> model.predict(state["observation"], state["action"]).shape
        torch.Size([8, 10, 5])
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        categories: Sequence[int] | None = None,
        ensemble_size: int = 8,
        num_cells: Sequence[int] = (512,) * 4,
        activation_class: type[nn.Module] = nn.SiLU,
        temperature: float = 0.5,
        sampling: str = "balanced",
        in_keys: Sequence[NestedKey] = ("observation", "action"),
        out_keys: Sequence[NestedKey] = (("next", "observation"),),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        categories = (obs_dim,) if categories is None else tuple(categories)
        if sum(categories) != obs_dim or min(categories, default=0) < 1:
            raise ValueError(
                f"categories must be positive numbers that sum to obs_dim={obs_dim}, one logit for "
                f"each feature of the observation; got {categories}, whose sum is "
                f"{sum(categories)}."
            )
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}.")
        super().__init__(
            obs_dim,
            action_dim,
            obs_dim,
            ensemble_size=ensemble_size,
            num_cells=num_cells,
            activation_class=activation_class,
            sampling=sampling,
            in_keys=in_keys,
            out_keys=out_keys,
            device=device,
            dtype=dtype,
        )
        self.categories = categories
        self.temperature = float(temperature)

    def update_normalizer(self, tensordict: TensorDictBase) -> None:
        """Takes the transitions of ``tensordict`` into the statistics, each to be passed once."""
        keys = (*self.in_keys, *self.out_keys)
        observation, action, next_observation = read_entries(tensordict, keys, READER)
        self.check_shapes(observation, action, next_observation)
        self.check_one_hot(self.in_keys[0], observation)
        self.check_one_hot(self.out_keys[0], next_observation)
        self.action_statistics.update(action)

    def variables(self, features: Tensor) -> tuple[Tensor, ...]:
        """The part ``[*B, K]`` of each variable in ``features`` ``[*B, D]``."""
        return features.split(self.categories, -1)

    def check_one_hot(self, key: NestedKey, observation: Tensor) -> None:
        """Refuses an observation ``[*B, D]`` one of whose variables is not one-hot."""
        valid = ((observation == 0) | (observation == 1)).all(-1)
        for part in self.variables(observation):
            valid = valid & (part.sum(-1) == 1)
        if not valid.all():
            raise ValueError(
                f"{key!r} must be one-hot, a single 1 among the categories of each variable, of "
                f"which there are {self.categories}; got {observation[~valid][0].tolist()}. Pass "
                "categories= in the observation's order, and the raw observation, encoded by "
                "torch.nn.functional.one_hot if it is an index."
            )

    def encoded(self, observation: Tensor) -> Tensor:
        """The observation ``[*B, D]`` as it is; in eager mode, one that is not one-hot raises."""
        if not torch.compiler.is_compiling():  # a compiled graph takes no look at values
            self.check_one_hot(self.in_keys[0], observation)
        return observation

    def predict(self, observation: Tensor, action: Tensor) -> Tensor:
        """Every member's probabilities of the next observation's categories.

        Args:
            observation: ``[*B, D]``.
            action: ``[*B, A]``.

        Returns:
            ``[E, *B, D]``, each variable's summing to 1.
        """
        input_BI = self.input_rows(observation, action)
        logits_EBD = self.network(input_BI.expand(self.ensemble_size, -1, -1))
        parts = [part.softmax(-1) for part in self.variables(logits_EBD)]
        return torch.cat(parts, -1).reshape(self.ensemble_size, *observation.shape)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draws the next observation ``[*B, D]``, one-hot, and writes it into ``tensordict``."""
        observation, action = read_entries(tensordict, self.in_keys, READER)
        input_BI = self.input_rows(observation, action)
        logits_BD = self.one_members_output(input_BI, tensordict.get(self.member_key, None))
        drawn = [
            straight_through_one_hot(part, self.temperature) for part in self.variables(logits_BD)
        ]
        following = torch.cat(drawn, -1).reshape(observation.shape)
        return tensordict.set(self.out_keys[0], following)
