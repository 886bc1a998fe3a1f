"""The base of all settings, and how a recipe and ``key=value`` words become one.

The command line overrides the recipe, key by key, from left to right; nothing else does. Every
wrong key and value is collected and shown together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

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


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """Returns the ``key=value`` overrides of words that hold nothing else.

    Raises:
        ConfigError: a word is a plain one.
    """
    plain, overrides = split_overrides(words)
    if plain:
        raise ConfigError(f"'{plain[0]}' is no setting; expected key=value.")
    return overrides


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
    problems: list[str] = []
    known = _joined(kind, recipe, overrides, "", problems)
    try:
        settings = kind.model_validate(known)
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return settings


def layered(
    kind: type[Settings], older: Mapping[str, Any], newer: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a table with another over it, less what the newer keys stand in for.

    A newer key that is None stands in for nothing; it takes along what depends on it. Tables
    within are layered likewise.
    """
    dropped: set[str] = set()
    for key, value in newer.items():
        dropped.update((kind.dependents if value is None else kind.replaces).get(key, ()))
    kept = {key: value for key, value in older.items() if key not in dropped}
    both = {
        name: layered(table, kept[name], newer[name])
        for name, table in tables_of(kind).items()
        if isinstance(kept.get(name), Mapping) and isinstance(newer.get(name), Mapping)
    }
    return {**kept, **newer, **both}


def tables_of(kind: type[BaseModel]) -> dict[str, type[Settings]]:
    """Returns the fields that are settings themselves, ``[name]`` in a recipe."""
    found = {}
    for name, field in kind.model_fields.items():
        for choice in (field.annotation, *get_args(field.annotation)):
            if isinstance(choice, type) and issubclass(choice, Settings):
                found[name] = choice
    return found


def _joined(
    kind: type[Settings],
    recipe: Mapping[str, Any],
    overrides: Mapping[str, str],
    where: str,
    problems: list[str],
) -> dict[str, Any]:
    """The recipe's table with the overrides over it; tells the keys that neither should have.

    Args:
        kind: What they are settings of.
        recipe: Its table.
        overrides: Below it, ``table.key`` for those of a table within.
        where: Before its keys, ``table.`` for those of a table.
        problems: What is wrong is added to them.
    """
    fields, tables = kind.model_fields, tables_of(kind)
    newer: dict[str, Any] = {}
    for key, text in overrides.items():
        if key in tables and text not in {"none", "None"}:
            names = ", ".join(f"{where}{key}.{name}" for name in tables[key].model_fields)
            problems.append(f"'{where}{key}' is a table; expected one of: {names}")
        elif key in fields:
            newer[key] = _as_field(kind, key, text)
    for name, table in tables.items():
        within = f"{name}."
        words = {k.removeprefix(within): t for k, t in overrides.items() if k.startswith(within)}
        table_of = recipe.get(name)
        if words or isinstance(table_of, Mapping):
            inner = _joined(table, table_of or {}, words, f"{where}{within}", problems)
            newer.setdefault(name, inner)
    known = [*fields, *(f"{name}.{key}" for name in tables for key in tables[name].model_fields)]
    problems += [
        f"'{where}{key}' is not a setting{nearest(where + key, [where + name for name in known])}"
        for key in [*overrides, *recipe]
        if key not in fields and key.partition(".")[0] not in tables
    ]
    older = {key: value for key, value in recipe.items() if key not in tables.keys() & newer.keys()}
    return {key: value for key, value in layered(kind, older, newer).items() if key in fields}


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
    told = where if isinstance(item["input"], Mapping) else f"{where}={item['input']}"
    return f"{told}: {message[0].lower()}{message[1:]}"
