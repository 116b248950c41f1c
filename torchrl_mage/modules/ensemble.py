"""An ensemble of multi-layer perceptrons as batched matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from torchrl_mage.modules.precision import in_full_precision


class EnsembleLinear(nn.Module):
    """One affine map for each member, Xavier-uniform weights and zero biases.

    Args:
        ensemble_size: number of members ``E``.
        in_features: size ``I`` of the input.
        out_features: size ``O`` of the output.
        init: fills one member's ``[O, I]`` weight in place.
        full_precision: whether autocast leaves it as it is.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Example:
        >>> EnsembleLinear(3, 4, 2)(torch.zeros(3, 5, 4)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        ensemble_size: int,
        in_features: int,
        out_features: int,
        *,
        init: Callable[[Tensor], Tensor] = nn.init.xavier_uniform_,
        full_precision: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = (ensemble_size, in_features, out_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(
            torch.empty((ensemble_size, 1, out_features), device=device, dtype=dtype)
        )
        self._init = init
        self.full_precision = full_precision
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws each member's weights on their own."""
        with torch.no_grad():
            for weight in self.weight:
                self._init(weight.mT)
            self.bias.zero_()

    def forward(self, input_EBI: Tensor) -> Tensor:
        """Maps ``[E, B, I]`` to ``[E, B, O]``."""
        if self.full_precision:
            return in_full_precision(self._affine, input_EBI, dtype=self.weight.dtype)
        return self._affine(input_EBI)

    def _affine(self, input_EBI: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, input_EBI, self.weight)


class EnsembleMLP(nn.Sequential):
    """One multi-layer perceptron for each member, the head Xavier-normal.

    Under autocast its hidden layers have the lower precision, its output has its own.

    Args:
        ensemble_size: number of members ``E``.
        in_features: size ``I`` of the input.
        out_features: size ``O`` of the output.
        num_cells: width of each hidden layer.
        activation_class: the activation between layers.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Example:
        >>> EnsembleMLP(3, 4, 2, num_cells=(8, 8))(torch.zeros(3, 5, 4)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        ensemble_size: int,
        in_features: int,
        out_features: int,
        *,
        num_cells: Sequence[int],
        activation_class: type[nn.Module] = nn.SiLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        widths = [in_features, *num_cells]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [
                EnsembleLinear(ensemble_size, narrow, wide, device=device, dtype=dtype),
                activation_class(),
            ]
        head = EnsembleLinear(
            ensemble_size,
            widths[-1],
            out_features,
            init=nn.init.xavier_normal_,
            full_precision=True,
            device=device,
            dtype=dtype,
        )
        super().__init__(*layers, head)
