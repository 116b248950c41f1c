"""One minimisation: a loss, what it trains, its optimiser, its clipping, what moves after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

LossFunction = Callable[[TensorDictBase], tuple[Tensor, dict[str, Tensor]]]


class Observer(Protocol):
    """Who is told of each step: a :class:`~torchrl_mage.trainers.Run`."""

    def minimises(self, minimizer: Minimizer) -> None:
        """Takes the minimizer into its register."""

    def report(self, **values: Tensor) -> None:
        """Takes in metrics."""

    def watch(self, states: TensorDictBase | None = None, **values: Tensor) -> None:
        """Looks out for divergence."""


class Minimizer:
    """Minimises a loss; the run it belongs to sees every step.

    Args:
        run: is told the loss, its metadata and what may diverge; holds the minimizer from here on.
        name: of the loss, such as ``"loss_qvalue"``.
        loss: a batch to the loss and its metadata.
        optimizer: of what the loss trains.
        clip: bound of each gradient element; ``None`` for none.
        targets: updaters of target networks, stepped after each step.
        graph: wraps the step, to compile it.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl_mage.trainers.optimisation import Silent
        >>> weight = nn.Parameter(torch.tensor([1.0]))
        >>> descend = Minimizer(
        ...     Silent(), "loss", lambda td: ((weight * td["x"]).square().mean(), {}),
        ...     torch.optim.SGD([weight], lr=0.1), clip=0.5,
        ... )
        >>> _ = descend(TensorDict(x=torch.ones(3)))
        >>> weight.data, descend.count
        (tensor([0.9500]), 1)
    """

    def __init__(
        self,
        run: Observer,
        name: str,
        loss: LossFunction,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float | None = None,
        targets: Sequence[Any] = (),
        graph: Callable[[Callable[[], None]], Callable[[], None]] = lambda step: step,
    ) -> None:
        self.name, self.count = name, 0
        self.parameters: list[nn.Parameter] = [
            p for group in optimizer.param_groups for p in group["params"]
        ]
        self._run, self._loss, self._optimizer, self._targets = run, loss, optimizer, targets
        self._step = graph(optimizer.step if clip is None else clipped_step(optimizer, clip))
        self._fresh = deepcopy(optimizer.state_dict())
        run.minimises(self)

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Takes one step; returns the loss's metadata."""
        loss, metadata = self._loss(batch)
        loss.backward()
        self._step()
        self._optimizer.zero_grad()
        for target in self._targets:
            target.step()
        self.count += 1
        self._run.report(**{self.name: loss}, **metadata)
        self._run.watch(batch, **{self.name: loss}, **_huber(metadata))
        return metadata

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the count of steps."""
        return {"optimizer": self._optimizer.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.count = state["count"]

    def reset(self) -> None:
        """Takes the optimiser back to where it was made; the count goes on."""
        self._optimizer.load_state_dict(deepcopy(self._fresh))


class Silent:
    """An observer that no one reads, for a minimizer without a run."""

    def minimises(self, minimizer: Minimizer) -> None:
        """Holds nothing."""

    def report(self, **values: Tensor) -> None:
        """Keeps nothing."""

    def watch(self, states: TensorDictBase | None = None, **values: Tensor) -> None:
        """Looks at nothing."""


def _huber(metadata: dict[str, Tensor]) -> dict[str, Tensor]:
    """The TD error as the authors watch it."""
    error = metadata.get("td_error")
    if error is None:
        return {}
    return {"huber_td_error": smooth_l1_loss(error, torch.zeros_like(error))}


def clipped_step(optimizer: torch.optim.Optimizer, clip_value: float) -> Callable[[], None]:
    """One step of ``optimizer`` with each gradient element clipped at ``+-clip_value``.

    Args:
        optimizer: whose parameters have gradients when the step is taken.
        clip_value: positive bound of a gradient element.

    Returns:
        A function without arguments; it leaves the gradients as they are, clipped.

    Raises:
        ValueError: ``clip_value`` is not positive.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> step = clipped_step(torch.optim.SGD([weight], lr=0.1), clip_value=5.0)
        >>> (weight * torch.tensor([2.0, 100.0])).sum().backward()
        >>> step()
        >>> weight.data
        tensor([0.8000, 0.5000])
    """
    if not clip_value > 0:
        raise ValueError(f"clip_value must be positive, got {clip_value}.")
    parameters: Iterable[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        nn.utils.clip_grad_value_(parameters, clip_value)
        optimizer.step()

    return step
