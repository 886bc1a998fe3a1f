"""The base of all settings, and how a recipe and ``key=value`` words become one.

The command line overrides the recipe, key by key, from left to right; nothing else does. Every
wrong key and value is collected and shown together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fcache.errors import ConfigError, nearest


class Settings(BaseModel):
    """Base of every settings class: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # An override of the key drops the recipe's values of the keys it stands in for...
    replaces: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # ...and key=none drops those that mean nothing without it.
    dependents: ClassVar[Mapping[str, tuple[str, ...]]] = {}


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Divides command-line words into plain words and ``key=value`` overrides.

    A word that names an existing path is a plain word even if it holds ``=``.
    """
    plain: list[str] = []
    overrides: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key.replace(".", "_").isidentifier() and not Path(word).exists():
            overrides[key] = value
        else:
            plain.append(word)
    return plain, overrides


def parse_value(text: str) -> Any:  # noqa: ANN401 - the field's declared type decides
    """Reads an override the way TOML would, and as plain text where it is not TOML."""
    if text in {"none", "None", ""}:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


SettingsT = TypeVar("SettingsT", bound=Settings)


def resolve(
    kind: type[SettingsT], recipe: Mapping[str, Any], overrides: Mapping[str, str]
) -> SettingsT:
    """Builds settings from a recipe and overrides.

    Raises:
        ConfigError: every unknown key and impossible value, together.
    """
    problems = [
        f"'{key}' is not a setting{nearest(key, kind.model_fields)}"
        for key in [*overrides, *recipe]
        if key not in kind.model_fields
    ]
    fields = kind.model_fields
    newer = {key: _as_field(kind, key, text) for key, text in overrides.items() if key in fields}
    known = layered(kind, recipe, newer)
    try:
        settings = kind.model_validate({key: known[key] for key in known if key in fields})
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return settings


def layered(
    kind: type[Settings], older: Mapping[str, Any], newer: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a table with another over it, less what the newer keys stand in for.

    A newer key that is None stands in for nothing; it takes along what depends on it.
    """
    dropped: set[str] = set()
    for key, value in newer.items():
        dropped.update((kind.dependents if value is None else kind.replaces).get(key, ()))
    return {**{key: value for key, value in older.items() if key not in dropped}, **newer}


def _as_field(kind: type[BaseModel], key: str, text: str) -> Any:  # noqa: ANN401
    """Keeps text for a field that holds text or a path; reads a value for any other."""
    annotation = str(kind.model_fields[key].annotation)
    if text in {"none", "None"} and "'none'" not in annotation:
        return None
    textual = "str" in annotation or "Path" in annotation or "Literal['" in annotation
    if "dict[" not in annotation and (textual or "tuple[int, int]" in annotation):
        return text
    return parse_value(text)


def _explain(item: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"'{where}' is needed: give {where}=..."
    if not where:
        return message
    return f"{where}={item['input']}: {message[0].lower()}{message[1:]}"
