"""Manifests by shipped name or from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fcache.config import read_toml, shipped
from fcache.errors import ConfigError, nearest
from fcache.manifest.explain import explain
from fcache.manifest.published import PUBLISHED
from fcache.manifest.schema import Category, Labels, Layout, Manifest, Video

MANIFEST_SUFFIXES = (".toml", ".json")
_PARTS: Mapping[str, type[BaseModel]] = {
    "layout": Layout,
    "labels": Labels,
    "categories": Category,
    "videos": Video,
}


def manifest_names() -> list[str]:
    """Returns the names of the shipped manifests, sorted."""
    stems = (path.stem for path in shipped("manifests").glob("*.toml"))
    return sorted(stem for stem in stems if stem != PUBLISHED)


def names_manifest(word: str) -> bool:
    """Says whether a word is a manifest's path, or a shipped one's name and no path."""
    return word.endswith(MANIFEST_SUFFIXES) or (
        word in manifest_names() and not Path(word).exists()
    )


def load_manifest(name: str, root: Path | None = None) -> Manifest:
    """Returns a manifest by shipped name or by path.

    Args:
        name: A name from ``manifest_names()`` or a path ending in ``.toml`` or ``.json``.
        root: Overrides the manifest's root. A relative root in the file is relative to the file.

    Raises:
        ConfigError: no such manifest, or its content breaks the schema.
    """
    path = Path(name)
    if path.suffix not in MANIFEST_SUFFIXES and len(path.parts) == 1:
        if name not in manifest_names():
            raise ConfigError(
                f"manifest '{name}' is not shipped{nearest(name, manifest_names())}; "
                f"expected one of {', '.join(manifest_names())} or a path to a .toml or .json file."
            )
        path = shipped("manifests") / f"{name}.toml"
    table = _read_json(path) if path.suffix == ".json" else read_toml(path)
    return parse_manifest(table, origin=path, root=root)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"'{path}' does not exist; expected a JSON file.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not a readable JSON file: {error}.") from None
    if not isinstance(table, dict):
        raise ConfigError(f"'{path}' is no manifest: its JSON is not one object.")
    return table


def parse_manifest(table: dict[str, Any], *, origin: Path, root: Path | None = None) -> Manifest:
    """Builds a manifest from a table read at ``origin``.

    Raises:
        ConfigError: the table breaks the schema; every problem is named.
    """
    written = table.get("root")
    if root is not None:
        table = {**table, "root": os.path.abspath(os.path.expanduser(root))}
    elif isinstance(written, str):
        folder = os.path.abspath(origin.parent)
        table = {**table, "root": os.path.normpath(os.path.join(folder, written))}
    try:
        return Manifest.model_validate(table)
    except ValidationError as error:
        text = explain(error, Manifest, _PARTS)
        raise ConfigError(f"'{origin}' breaks the manifest schema: {text}.") from None
