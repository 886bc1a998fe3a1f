"""``fcache recipes``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fcache.cli.output import emit_json, emit_table


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List the shipped recipes, or print one, ready to copy and edit."""
    from fcache.config import load_recipe, recipe_names, shipped

    if name is not None:
        table = load_recipe(name)
        if as_json:
            emit_json("recipes.recipe", {"name": name, "recipe": table})
        else:
            path = shipped("pipelines") / f"{name}.toml" if name in recipe_names() else Path(name)
            print(path.read_text(encoding="utf-8"), end="")
        return
    tables = {one: load_recipe(one) for one in recipe_names()}
    if as_json:
        emit_json("recipes", {"recipes": {one: table["about"] for one, table in tables.items()}})
        return
    emit_table(
        ("NAME", "KIND", "ABOUT"),
        [(one, table["kind"], table["about"]) for one, table in tables.items()],
    )
