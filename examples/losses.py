"""The loss that a script trains, by its name in the settings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchrl_mage import MAGELoss
from torchrl_mage.objectives.imagined import AgentArguments
from torchrl_mage.trainers import Run, SettingsError

# What the scripts pass themselves, or what their updates cannot do with another value.
SCRIPTS = {"self", "actor_network", "qvalue_network", "world_model", "action_spec", "bounds"} | {
    "num_qvalue_nets",
    "reduction",
}


def chosen_loss(cfg: DictConfig, run: Run, **known: type[MAGELoss]) -> Callable[..., MAGELoss]:
    """The class that ``loss.kind`` names, with the settings of ``loss`` that it takes.

    The run says which it does not: a recipe has some for MAGE that another loss has no use for.
    What it takes are the keyword arguments of its constructor, and those of its bases where it ends
    with ``**others``.

    Args:
        cfg: ``loss``: ``kind``, a name of ``known`` or ``module:Class``; ``arguments`` of its own.
        run: says what is not passed on.
        **known: by their names, the first the base of all.

    Raises:
        SettingsError: there is no such class, it is none of the kind that the script trains, or it
            does not take one of ``loss.arguments``.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.loss, resolve=True)
    kind = _found(settings.pop("kind", "mage"), known)
    own, taken = settings.pop("arguments", {}), _parameters(kind)
    for name, value in own.items():
        if name in settings:
            raise SettingsError(f"loss.arguments.{name} = {value!r}: set loss.{name}={value}.")
        if name not in taken:
            raise SettingsError(
                f"loss.arguments.{name} = {value!r}: {kind.__name__} takes no such argument; it "
                f"takes {', '.join(sorted(taken - settings.keys()))}."
            )
    if unused := sorted(settings.keys() - taken):
        run.say(f"{kind.__name__} takes no loss.{', loss.'.join(unused)}")
    return partial(kind, **{name: settings[name] for name in settings.keys() & taken} | own)


def _found(kind: str, known: Mapping[str, type[MAGELoss]]) -> type[MAGELoss]:
    if kind in known:
        return known[kind]
    base = next(iter(known.values()))
    module, _, name = kind.partition(":")
    wanted = f"loss.kind = {kind!r}: must be {', '.join(known)} or module:Class"
    if not module.replace(".", "").isidentifier() or not name or module.startswith("."):
        raise SettingsError(f"{wanted}.")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{wanted} ({error}); install it, or put its folder on PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise SettingsError(f"{wanted}, a subclass of {base.__name__}.")
    return found


def _parameters(kind: type[MAGELoss]) -> set[str]:
    """The keyword arguments of a loss, those that it passes on to its bases included."""
    names: set[str] = set()
    for cls in kind.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        rest = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if rest is not None and "AgentArguments" in str(rest.annotation):
            names |= set(AgentArguments.__annotations__)
            break
        if rest is None:
            break
    return names - SCRIPTS
