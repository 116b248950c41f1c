"""What a script's command line says, and what can be answered to it before PyTorch is imported."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from usage import usage

from torchrl_mage.trainers.settings import SettingsError, check_settings

CONFIG = Path(__file__).resolve().parent / "config"
RANGES = CONFIG / "ranges.yaml"
UNKNOWN = ("custom", "dmc")  # the groups of environments of which nothing is known
# Hydra's options that print something and end.
SHOWN = {"--help", "-h", "--cfg", "-c", "--info", "-i", "--hydra-help", "--version"}


def config_path(script: str) -> str:
    """Where a script's experiments are looked for first.

    Example:
        >>> Path(config_path("mage_td3")).name, Path(config_path("td3")).name
        ('config', 'td3')
    """
    return str(CONFIG / script if (CONFIG / script).is_dir() else CONFIG)


def checked(cfg: DictConfig) -> dict[str, Any]:
    """The settings that a run is asked for.

    Raises:
        SettingsError: some are out of their range.
    """
    if cfg.env.name is None:
        raise SettingsError(
            "env.name is missing, the environment's name, e.g. env=custom "
            "env.name=InvertedPendulum-v5, or env=dmc env.name=cartpole-balance"
        )
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    check_settings(settings, RANGES)
    return settings


def answer(argv: list[str]) -> None:
    """Ends the process if the command line asks for help, or for settings that cannot be.

    Importing PyTorch takes seconds, which nobody wants to wait to read of a typing mistake.

    Args:
        argv: the script that is run, and what it was given.
    """
    script = Path(argv[0])
    if script.parent.resolve() != CONFIG.parent or not (CONFIG / f"{script.stem}.yaml").exists():
        return  # imported by another program
    options = {argument.partition("=")[0] for argument in argv[1:] if argument.startswith("-")}
    hydra_main = hydra.main(
        config_path=config_path(script.stem), config_name=script.stem, version_base="1.3"
    )
    if options & SHOWN:
        hydra_main(_nothing)()
        sys.exit()
    if options:  # such as --multirun
        return
    try:
        if cfg := _one_run(script.stem, argv[1:]):
            checked(cfg)
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except HydraException:
        hydra_main(_nothing)()  # says what is wrong
    except OmegaConfBaseException:
        pass  # a value that only the run can tell, or cannot either


def _one_run(script: str, overrides: list[str]) -> DictConfig | None:
    """Its settings; ``None`` where the overrides, or an experiment, are those of a sweep."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    if any(override.is_sweep_override() for override in parsed):
        return None
    with hydra.initialize_config_dir(config_path(script), version_base="1.3"):
        cfg = hydra.compose(script, overrides, return_hydra_config=True)
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return None
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def _nothing(cfg: DictConfig) -> None:
    """Takes the place of a script's training."""


# -------------------------------------------------------------------------- the config's resolvers


def env_folder(choice: str, name: str | None) -> str:
    """The folder of a task's runs: an environment of the user's own has its name too.

    Example:
        >>> env_folder("hopper", "Hopper-v5"), env_folder("custom", "my_module:Mine/Env-v0")
        ('hopper', 'custom/my_module_Mine_Env-v0')
    """
    own = re.sub(r"[^\w.-]", "_", str(name))
    return f"{choice}/{own}" if choice in UNKNOWN else choice


def short(name: str, length: int = 100) -> str:
    """A name that a disk takes as a folder's, its own for each set of overrides.

    Example:
        >>> short("seed=0"), len(short("x=1," * 100)), short("x=1," * 100) == short("x=1," * 99)
        ('seed=0', 100, False)
    """
    if len(name) <= length:
        return name
    return f"{name[: length - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def without(data: str | None, steps: int) -> int:
    """Steps that are left out where there are data to begin with.

    Example:
        >>> without(None, 100), without("log.csv", 100)
        (100, 0)
    """
    return 0 if data else steps


def offline(data: str | None, total_steps: int, steps: int) -> int:
    """Steps on the data alone, where the environment has none.

    Example:
        >>> offline("log.csv", 0, 1500), offline("log.csv", 1500, 1500), offline(None, 0, 1500)
        (1500, 0, 0)
    """
    return steps if data and total_steps == 0 else 0


def run_folder(resume: str | None, fresh: str) -> str:
    """The folder that ``resume`` names, else ``fresh``.

    Example:
        >>> run_folder("runs/old", "runs/new"), run_folder("auto", "runs/new")
        ('runs/old', 'runs/new')
    """
    return fresh if resume in (None, "auto") else str(resume)


for resolver in (env_folder, offline, run_folder, short, usage, without):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


class SharedConfig(SearchPathPlugin):
    """Behind a script's own experiments, those and the groups that all scripts share."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's hook."""
        search_path.append("shared", f"file://{CONFIG}")


Plugins.instance().register(SharedConfig)
answer(sys.argv)
