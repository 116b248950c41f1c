"""What a run must not forget, registered once, by name."""

from __future__ import annotations

from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from torchrl_mage.trainers.checkpoint import Stateful
from torchrl_mage.trainers.optimisation import Minimizer

RESERVED = {"collector", "metrics", "run", "random"}  # what a checkpoint has besides


class Register:
    """The parts of a run: losses, networks, minimizers, and whatever else has a state.

    Checkpoints take each part, the final networks are the modules that are no loss, the guard
    watches what the minimizers train, and a reset redraws the losses and takes the minimizers of
    their parameters back.

    Example:
        >>> register = Register()
        >>> register.add(actor=nn.Linear(2, 1))
        >>> register.check(nn.Linear(2, 1))
        Traceback (most recent call last):
            ...
        ValueError: the policy's weight is in no part that the run holds (['actor']): ...
    """

    def __init__(self) -> None:
        self._parts: dict[str, Stateful] = {}
        self._closed = False

    def add(self, **parts: Stateful) -> None:
        """Takes parts in.

        Raises:
            ValueError: a name is taken, or the run has begun.
        """
        if self._closed:
            raise ValueError(
                f"the run has begun: hold {sorted(parts)} before its first step, or its "
                "checkpoints would not have them."
            )
        if taken := set(parts) & (set(self._parts) | RESERVED):
            raise ValueError(f"the run holds {sorted(taken)} already; give each part its own name.")
        self._parts |= parts

    @property
    def minimizers(self) -> list[Minimizer]:
        """Those of all models."""
        return [part for part in self._parts.values() if isinstance(part, Minimizer)]

    @property
    def agents_minimizers(self) -> list[Minimizer]:
        """Those that train the losses' own parameters; all, where no loss is held."""
        if not self._losses:
            return self.minimizers
        own = {id(parameter) for loss in self._losses for parameter in loss.parameters()}
        return [m for m in self.minimizers if own.issuperset(map(id, m.parameters))]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The modules that are no loss: what is used once a run has ended."""
        return {
            name: part
            for name, part in self._parts.items()
            if isinstance(part, nn.Module) and not isinstance(part, LossModule)
        }

    @property
    def _losses(self) -> list[LossModule]:
        return [part for part in self._parts.values() if isinstance(part, LossModule)]

    def checkpointed(self) -> dict[str, Stateful]:
        """Each part but those that a loss holds anyway."""
        of_losses = {id(tensor) for loss in self._losses for tensor in _tensors(loss)}
        twice = {
            name
            for name, network in self.networks.items()
            if of_losses.issuperset(id(tensor) for tensor in _tensors(network))
        }
        return {name: part for name, part in self._parts.items() if name not in twice}

    def check(self, policy: nn.Module) -> None:
        """Refuses a policy, or a loss's world model, of which not all is held.

        Raises:
            ValueError: a run that is resumed would forget it.
        """
        modules = [part for part in self._parts.values() if isinstance(part, nn.Module)]
        held = {tensor.data_ptr() for module in modules for tensor in _tensors(module)}
        needed = [("policy", policy)]
        for loss in self._losses:
            if "world_model" in loss.__dict__:
                needed.append(("world model", loss.__dict__["world_model"]))
        for owner, module in needed:
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if tensor.numel() and tensor.data_ptr() not in held:
                    raise ValueError(
                        f"the {owner}'s {name} is in no part that the run holds "
                        f"({sorted(self._parts)}): register its module with run.holds(NAME=...), "
                        "or a resumed run would forget it."
                    )

    def close(self, policy: nn.Module) -> None:
        """Checks, and takes nothing in from here on: the run begins."""
        self.check(policy)
        self._closed = True

    def reset_agent(self) -> None:
        """Redraws actor and critics; the model, the data and the statistics stay."""
        for loss in self._losses:
            loss.reset_parameters_recursive()
        for minimizer in self.agents_minimizers:
            minimizer.reset()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
