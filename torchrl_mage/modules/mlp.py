"""The multi-layer perceptron of actor, critics and learned reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from torchrl_mage.modules.precision import in_full_precision


class XavierLinear(nn.Linear):
    """An affine map with Xavier-uniform weights and zero biases, also when it is reset.

    ``full_precision`` keeps it out of autocast's lower one.

    Example:
        >>> XavierLinear(3, 3).weight.abs().max() <= 1.0
        tensor(True)
    """

    full_precision = False

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[*B, I]`` to ``[*B, O]``."""
        if self.full_precision:
            return in_full_precision(super().forward, input, dtype=self.weight.dtype)
        return super().forward(input)

    def reset_parameters(self) -> None:
        """Draws the weights, those of several stacked copies (``[..., O, I]``) too."""
        bound = (6 / (self.in_features + self.out_features)) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def xavier_mlp(
    in_features: int,
    out_features: int,
    num_cells: Sequence[int],
    *,
    layer_norm: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MLP:
    """TorchRL's ``MLP`` with SiLU and :class:`XavierLinear`, as the authors' code has.

    Under autocast its hidden layers have the lower precision, its output has its own.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        num_cells: width of each hidden layer.
        layer_norm: whether each hidden layer is normalised before its activation.
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
        layer_class=XavierLinear,
        norm_class=nn.LayerNorm if layer_norm else None,
        norm_kwargs=[{"normalized_shape": width} for width in num_cells] if layer_norm else None,
        device=device,
    ).to(dtype=dtype)
    mlp[-1].full_precision = True
    return mlp
