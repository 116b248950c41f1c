"""Polyak averaging of some of a loss's networks."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDictBase
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule


class NetworkSoftUpdate(SoftUpdate):
    """:class:`torchrl.objectives.SoftUpdate` for the named networks of a loss.

    Algorithm 2 (arXiv:2004.14309) moves the critics' targets after every critic update and the
    actor's target only after an actor update, so each has an updater of its own.

    Args:
        loss_module: the loss that holds the targets.
        networks: names such as ``"qvalue_network"``.
        tau: share of the trained parameters in each update.

    Raises:
        ValueError: the loss has no target of that name.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> from torch import nn
        >>> from torchrl.objectives import TD3Loss
        >>> actor = TensorDictModule(nn.Linear(2, 1), ["observation"], ["action"])
        >>> critic = TensorDictModule(nn.Linear(2, 1), ["observation"], ["state_action_value"])
        >>> loss = TD3Loss(actor, critic, bounds=(-1.0, 1.0), delay_actor=True)
        >>> critic_targets = NetworkSoftUpdate(loss, ["qvalue_network"], tau=0.005)
        >>> actor_targets = NetworkSoftUpdate(loss, ["actor_network"], tau=0.005)
        >>> critic_targets.step()
    """

    _source_names: list[str]
    _target_names: list[str]
    _sources: TensorDictBase
    _targets: TensorDictBase

    def __init__(
        self, loss_module: LossModule, networks: str | Sequence[str], *, tau: float
    ) -> None:
        self._networks = [networks] if isinstance(networks, str) else list(networks)
        flags = loss_module._has_update_associated
        others = {name: flag for name, flag in flags.items() if name not in self._networks}
        super().__init__(loss_module, tau=tau)
        flags.update(others)  # their targets still wait for an updater

    def init_(self) -> None:
        """Copies the chosen networks, and none else, into their targets."""
        names = [f"target_{name}_params" for name in self._networks]
        unknown = set(names) - set(self._target_names)
        if unknown:
            raise ValueError(
                f"the loss has no {sorted(unknown)}; its targets are {sorted(self._target_names)}. "
                "Build it with delay_actor=True and delay_qvalue=True."
            )
        self._target_names = names
        self._source_names = [f"{name}_params" for name in self._networks]
        super().init_()
