"""The multi-layer perceptron of actor, critics and learned reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrl.modules import MLP


def xavier_mlp(
    in_features: int,
    out_features: int,
    num_cells: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MLP:
    """TorchRL's ``MLP`` with SiLU, Xavier-uniform weights and zero biases, as the paper's code has.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        num_cells: width of each hidden layer.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Example:
        >>> xavier_mlp(3, 1, [16, 16])(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    mlp = MLP(
        in_features,
        out_features,
        num_cells=list(num_cells),
        activation_class=nn.SiLU,
        device=device,
    ).to(dtype=dtype)
    for layer in mlp.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return mlp
