"""Checks a run's settings before anything is trained, all of them at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "of length {} or more",
    "pattern": "a text like {}",
}


class SettingsError(ValueError):
    """Settings out of their range; the message names every one, its value and what it may be."""


def check_settings(settings: Mapping[str, Any], schema: Mapping[str, Any] | str | Path) -> None:
    """Refuses settings that a schema does not allow.

    Args:
        settings: nested settings; one that the schema does not name is refused, where it names
            any.
        schema: a JSON Schema, or the YAML file that holds one. Numbers are finite, and an integer
            is written without a decimal point.

    Raises:
        SettingsError: settings are out of range.

    Example:
        >>> schema = {"properties": {"loss": {"properties": {
        ...     "lmbda": {"type": "number", "minimum": 0}, "name": {"enum": ["l1", "l2"]}}}}}
        >>> check_settings({"loss": {"lmbda": -1, "name": "l3"}}, schema)
        Traceback (most recent call last):
            ...
        torchrl_mage.trainers.settings.SettingsError: 2 settings are out of range:
          loss.lmbda = -1: must be a number, at least 0
          loss.name = 'l3': must be one of l1, l2
    """
    import yaml  # of the extra "examples", as is jsonschema below

    if not isinstance(schema, Mapping):
        schema = dict(yaml.safe_load(Path(schema).read_text()))
    bad: dict[str, str] = {}
    for error in _validator(schema).iter_errors(settings):
        key = ".".join(str(part) for part in error.absolute_path if not isinstance(part, int))
        value = _select(settings, error.absolute_path)
        bad.setdefault(key, f"{key} = {value!r}: must be {', '.join(_wanted(error.schema))}")
    known = list(_leaves(schema))
    for key in _unknown(settings, schema):
        near = difflib.get_close_matches(key, known, 1)
        bad[key] = f"{key}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if bad:
        count = f"{len(bad)} settings are" if len(bad) > 1 else "a setting is"
        raise SettingsError(f"{count} out of range:\n  " + "\n  ".join(bad.values()))


def _validator(schema: Mapping[str, Any]) -> Any:
    """Of JSON Schema, with integers that are no booleans and numbers that are finite."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ).redefine(
        "number",
        lambda _, value: (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        ),
    )
    return extend(Draft202012Validator, type_checker=types)(schema)


def _leaves(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of what a schema speaks of."""
    for key, below in schema.get("properties", {}).items():
        yield f"{prefix}{key}"
        yield from _leaves(below, f"{prefix}{key}.")


def _unknown(
    settings: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """The dotted names of settings that a schema, where it names any, does not name."""
    properties = schema.get("properties")
    if properties is None:
        return
    for key, value in settings.items():
        if key not in properties:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping):
            yield from _unknown(value, properties[key], f"{prefix}{key}.")


def _wanted(schema: Mapping[str, Any]) -> Iterator[str]:
    """What a schema allows, in words."""
    if "enum" in schema:
        yield "one of " + ", ".join("null" if c is None else str(c) for c in schema["enum"])
    kinds = schema.get("type", [])
    if kinds:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        yield " or ".join("null" if k == "null" else f"a{'n' * (k[0] in 'aio')} {k}" for k in kinds)
    for limit, words in _LIMITS.items():
        if limit in schema:
            yield words.format(schema[limit])
    if "description" in schema:
        yield schema["description"]
    if "items" in schema:
        yield "each " + ", ".join(_wanted(schema["items"]))


def _select(settings: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        settings = settings[part]
    return settings
