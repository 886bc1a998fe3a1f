"""Recipes of train stages, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fcache.config import SegmenterConfig, layered, load_recipe, resolve
from fcache.errors import ConfigError, nearest

STAGES: Mapping[str, type[SegmenterConfig]] = {"segmenter": SegmenterConfig}


def read_config(
    recipe: str | Path,
    overrides: Mapping[str, str] | None = None,
    values: Mapping[str, object] | None = None,
) -> SegmenterConfig:
    """Returns a resolved recipe.

    Args:
        recipe: A shipped recipe's name, or a path.
        overrides: ``key=value`` words, as text.
        values: The same as Python values.

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
    return resolve(kind, layered(kind, table, values or {}), overrides or {})
