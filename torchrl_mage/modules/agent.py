"""The paper's actor and critic (appendix D.2) and a stochastic actor, as TensorDict modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor, TanhModule, TanhNormal

from torchrl_mage.modules.mlp import xavier_mlp


def deterministic_actor(
    obs_dim: int,
    action_spec: TensorSpec,
    num_cells: Sequence[int],
    *,
    soft_bounds: bool = False,
    in_key: NestedKey = "normalized_observation",
    device: torch.device | str | None = None,
) -> TensorDictSequential:
    """A multi-layer perceptron whose output a tanh, or what is softer, maps into the action's box.

    In float32 the tanh of 9.1 is 1, its gradient 0: no state in which it acts so teaches it more.

    Args:
        obs_dim: number of observation features ``D``.
        action_spec: bounded spec of the action ``[A]``.
        num_cells: width of each hidden layer.
        soft_bounds: whether an output ``u`` is mapped by ``u / sqrt(1 + u**2)``, the tanh of its
            asinh, instead, which leaves an actor at its bounds a gradient (in float32 until
            ``u`` is some thousand).
        in_key: where the observation ``[*B, D]`` is read.
        device: device of the parameters.

    Returns:
        A module that writes ``action`` ``[*B, A]``.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> actor = deterministic_actor(3, Bounded(-1, 1, (1,)), [8], in_key="observation")
        >>> actor(TensorDict(observation=torch.zeros(5, 3)))["action"].shape
        torch.Size([5, 1])
    """
    mlp = xavier_mlp(obs_dim, action_spec.shape[-1], num_cells, device=device)
    soften = TensorDictModule(torch.asinh, in_keys=["param"], out_keys=["param"])
    return TensorDictSequential(
        TensorDictModule(mlp, in_keys=[in_key], out_keys=["param"]),
        *([soften] if soft_bounds else []),
        TanhModule(in_keys=["param"], out_keys=["action"], spec=action_spec),
    )


def stochastic_actor(
    obs_dim: int,
    action_spec: TensorSpec,
    num_cells: Sequence[int],
    *,
    in_key: NestedKey = "normalized_observation",
    device: torch.device | str | None = None,
) -> ProbabilisticActor:
    """A multi-layer perceptron with a Gaussian that a tanh squashes into the action's box.

    Args:
        obs_dim: number of observation features ``D``.
        action_spec: bounded spec of the action ``[A]``.
        num_cells: width of each hidden layer.
        in_key: where the observation ``[*B, D]`` is read.
        device: device of the parameters.

    Returns:
        A module that writes ``loc``, ``scale`` and ``action``, each ``[*B, A]``; the action is
        drawn, or deterministic, as the exploration type says.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> actor = stochastic_actor(3, Bounded(-1, 1, (1,)), [8], in_key="observation")
        >>> actor(TensorDict(observation=torch.zeros(5, 3)))["action"].shape
        torch.Size([5, 1])
    """
    mlp = xavier_mlp(obs_dim, 2 * action_spec.shape[-1], num_cells, device=device)
    return ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(mlp, NormalParamExtractor()), in_keys=[in_key], out_keys=["loc", "scale"]
        ),
        in_keys=["loc", "scale"],
        spec=action_spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": action_spec.space.low, "high": action_spec.space.high},
    )


def critic(
    obs_dim: int,
    action_dim: int,
    num_cells: Sequence[int],
    *,
    layer_norm: bool = False,
    zero_head: bool = False,
    in_key: NestedKey = "normalized_observation",
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """A multi-layer perceptron ``Q(s, a)``.

    Args:
        obs_dim: number of observation features ``D``.
        action_dim: number of action features ``A``.
        num_cells: width of each hidden layer.
        layer_norm: whether each hidden layer is normalised before its activation.
        zero_head: whether the last layer starts at zero, and so does every value.
        in_key: where the observation ``[*B, D]`` is read.
        device: device of the parameters.

    Returns:
        A module that reads ``action`` ``[*B, A]`` too, writes ``state_action_value`` ``[*B, 1]``.

    Example:
        >>> from tensordict import TensorDict
        >>> q = critic(3, 1, [8], in_key="observation")
        >>> td = TensorDict(observation=torch.zeros(5, 3), action=torch.zeros(5, 1))
        >>> q(td)["state_action_value"].shape
        torch.Size([5, 1])
    """
    mlp = xavier_mlp(obs_dim + action_dim, 1, num_cells, layer_norm=layer_norm, device=device)
    if zero_head:
        nn.init.zeros_(mlp[-1].weight)
    return TensorDictModule(
        mlp,
        in_keys=[in_key, "action"],
        out_keys=["state_action_value"],
    )
