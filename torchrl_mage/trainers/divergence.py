"""Notices within one environment step that a number is bad or that training has diverged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

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
        limits: the largest admissible size of a watched quantity that explodes while it is finite,
            or a function that gives it.

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
        self,
        parameters: Mapping[str, Iterable[Tensor]],
        limits: Mapping[str, float | Callable[[], float]],
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
            limit = limit() if callable(limit) else limit
            if not abs(value) <= limit or abs(value) == float("inf"):
                within = f" (limit {limit:g})" if limit < float("inf") else ""
                raise DivergenceError(f"step {step}: training diverged, {name} = {value:g}{within}")


def check_finite(values: TensorDictBase, *, step: int, source: str) -> None:
    """Refuses NaN and infinity.

    Args:
        values: floating entries are tested, nested ones too.
        step: environment step, for the message.
        source: who made the values, for the message.

    Raises:
        FloatingPointError: an entry is not finite; the message names it and its first bad value.

    Example:
        >>> from tensordict import TensorDict
        >>> check_finite(TensorDict(reward=torch.tensor([1.0, float("nan")])), step=7, source="env")
        Traceback (most recent call last):
            ...
        FloatingPointError: step 7: the env gave reward = nan (1 of 2 values not finite). ...
    """
    for key, value in values.items(include_nested=True, leaves_only=True):
        if not value.is_floating_point() or torch.isfinite(value).all():
            continue
        bad = value[~torch.isfinite(value)]
        name = ".".join(key) if isinstance(key, tuple) else key
        raise FloatingPointError(
            f"step {step}: the {source} gave {name} = {bad[0].item()} ({bad.numel()} of "
            f"{value.numel()} values not finite). Nothing was trained on it. An environment gives "
            "such values when it divides by zero or leaves its bounds, a policy when it diverged."
        )
