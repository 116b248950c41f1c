"""Notices within one environment step that training has diverged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor


class DivergenceError(FloatingPointError):
    """Training has diverged; the message names the quantity and the step."""


class DivergenceGuard:
    """Watches losses and what they train, with one transfer from the device an environment step.

    Args:
        parameters: by the name of a loss, the parameters that it trains: checked with it. A
            gradient that is not finite reaches them in the same update.
        limits: the largest admissible size of a watched quantity that explodes while it is finite.

    Example:
        >>> weight = torch.ones(2)
        >>> guard = DivergenceGuard({"loss": [weight]}, limits={"td_error": 100.0})
        >>> guard.watch(loss=torch.tensor(0.5), td_error=torch.tensor([3.0, 5.0]))
        >>> guard.check(step=7)
        >>> guard.watch(td_error=torch.tensor([300.0]))
        >>> guard.check(step=8)
        Traceback (most recent call last):
            ...
        torchrl_mage.trainers.divergence.DivergenceError: step 8: ... td_error = 300 (limit 100)
    """

    def __init__(
        self, parameters: Mapping[str, Iterable[Tensor]], limits: Mapping[str, float]
    ) -> None:
        self._parameters = {name: list(tensors) for name, tensors in parameters.items()}
        self._limits = limits
        self._watched: list[tuple[str, Tensor]] = []
        self.states: TensorDictBase = TensorDict()

    def watch(self, states: TensorDictBase | None = None, **values: Tensor) -> None:
        """Notes the mean of each quantity until the next :meth:`check`.

        Args:
            states: what an update learned from; kept as :attr:`states` until the next one.
            **values: tensors of any shape.
        """
        if states is not None:
            self.states = states
        self._watched += [(name, value.detach().mean()) for name, value in values.items()]

    @torch.no_grad()
    def check(self, step: int, *, everything: bool = False) -> None:
        """Refuses what was watched since the last check, and the parameters that it trained.

        Args:
            step: environment step, for the message.
            everything: whether to look at all parameters.

        Raises:
            DivergenceError: a quantity or a parameter is not finite, or a limit is exceeded.
        """
        watched, self._watched = self._watched, []
        trained = set(self._parameters)
        if not everything:
            trained &= {name for name, _ in watched}
        watched += [
            (
                f"the sum of what {name} trains",
                torch.stack([tensor.sum() for tensor in self._parameters[name]]).sum(),
            )
            for name in sorted(trained)
        ]
        if not watched:
            return
        values = torch.stack([value for _, value in watched]).tolist()
        for (name, _), value in zip(watched, values, strict=True):
            limit = self._limits.get(name, float("inf"))
            if not abs(value) <= limit or abs(value) == float("inf"):
                within = f" (limit {limit:g})" if limit < float("inf") else ""
                raise DivergenceError(f"step {step}: training diverged, {name} = {value:g}{within}")
