"""The recipes in ``pipelines/`` and the other data rooms a wheel ships."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fcache.errors import ConfigError, nearest


def shipped(room: Literal["pipelines", "manifests", "kernels"]) -> Path:
    """Returns the folder of a data room, in an installed wheel or in a checkout."""
    packaged = Path(str(resources.files("fcache"))) / room
    return packaged if packaged.is_dir() else packaged.parent.parent / room


def recipe_names() -> list[str]:
    """Returns the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in shipped("pipelines").glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the table in a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"'{path}' does not exist; expected a TOML file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"'{path}' is not a readable TOML file: {error}.") from None


def load_recipe(name: str) -> dict[str, Any]:
    """Returns a recipe's table, by shipped name or by path.

    Raises:
        ConfigError: no recipe of that name or path; the nearest names are offered.
    """
    path = Path(name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return read_toml(path)
    if name not in recipe_names():
        raise ConfigError(
            f"recipe '{name}' is not shipped{nearest(name, recipe_names())}.",
            run="fcache recipes",
        )
    return read_toml(shipped("pipelines") / f"{name}.toml")
