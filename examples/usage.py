"""What ``--help`` says: the settings that matter, and where the rest is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

TEXTS = Path(__file__).parent / "config" / "help.yaml"
HEAD = """{header}

  python examples/{script}.py KEY=VALUE ...        # e.g. seed=1 total_steps=2000
  python examples/{script}.py -m KEY=VALUE,VALUE   # a sweep: a run for each combination
"""
REST = """All the rest
  --cfg job                        every setting and its value, under the overrides beside it
  examples/config/                 {script}.yaml: what each is; ranges.yaml: what it may be
  examples/README.md               overrides by purpose; -m +experiment=NAME: the paper's
  --hydra-help                     what else the command line takes
"""


def usage(*, _root_: DictConfig) -> str:
    """A resolver for ``hydra.help.template``: each setting with its value under the overrides."""
    lines = []
    for group, texts in yaml.safe_load(TEXTS.read_text()).items():
        found = {key: value for key in texts if (value := _value(_root_, key)) is not None}
        lines += [group, *(f"  {f'{k}={v}':<32} {texts[k]}" for k, v in found.items()), ""]
    names = {"header": _root_.hydra.help.header, "script": _root_.script}
    text = "\n".join([HEAD.format(**names), *lines, REST.format(**names)])
    return text.replace("$", "$$")  # of a template


def _value(cfg: DictConfig, key: str) -> str | None:
    """As it is typed; ``None`` where there is no such setting."""
    missing = object()
    value: Any = cfg.hydra.runtime.choices.get(key) or OmegaConf.select(cfg, key, default=missing)
    if value is missing:
        return None
    return value if isinstance(value, str) else json.dumps(value)
