"""Recipes of train stages, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcache.config import LiveExtract, SegmenterConfig, layered, load_recipe, resolve
from fcache.errors import ConfigError, nearest
from fcache.manifest import load_manifest, names_manifest

STAGES: Mapping[str, type[SegmenterConfig]] = {"segmenter": SegmenterConfig}


def read_config(
    recipe: str | Path,
    overrides: Mapping[str, str] | None = None,
    values: Mapping[str, object] | None = None,
    *,
    videos: str | Path | None = None,
) -> SegmenterConfig:
    """Returns a resolved recipe.

    Args:
        recipe: A shipped recipe's name, or a path.
        overrides: ``key=value`` words, as text.
        values: The same as Python values.
        videos: What is trained on without a cache: a folder or a manifest. Unless the recipe has
            a table ``extract``, they are seen as ``fcache extract`` would see them.

    Raises:
        ConfigError: no such recipe, one of another kind, or every wrong key and value together.
    """
    table = load_recipe(str(recipe))
    stage = table.get("stage", "")
    if table.get("kind") != "stage" or stage not in STAGES:
        raise ConfigError(
            f"recipe '{recipe}' is of {table.get('kind', 'no kind')} '{stage}'; expected one that "
            f"trains: {', '.join(STAGES)}{nearest(str(stage), STAGES)}.",
            run="fcache recipes",
        )
    kind = STAGES[stage]
    overrides = overrides or {}
    if videos is not None:
        # A recipe's own table says all: that of a run leaves out what is none.
        table = {"extract": _usual(str(videos)), **table}
        if any(key.startswith("val_extract.") for key in overrides):
            table = {"val_extract": table["extract"], **table}
        if "val_extract" in table:  # departs from ``extract`` in what it says alone
            alike = {f"val_{k}": text for k, text in overrides.items() if k.startswith("extract.")}
            overrides = {**alike, **overrides}
    return resolve(kind, layered(kind, table, values or {}), overrides)


def _usual(videos: str) -> dict[str, Any]:
    """How an extraction would see videos that nothing else is said of."""
    recipe = load_recipe("extract")
    if not names_manifest(videos):
        return recipe
    return layered(LiveExtract, recipe, load_manifest(videos).sampling)
