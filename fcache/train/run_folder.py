"""The folder of a run: what it is made from, so that it can be resumed, told and made again.

``runs/<name>/{recipe.toml, run.json, head.json, checkpoints/, metrics.jsonl, tensorboard/,
reproduce.sh, methods.md}``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from fcache.config import FREE_KEYS, TrainConfig
from fcache.errors import ConfigError
from fcache.store.files import write_whole
from fcache.store.locks import held_alone

ConfigT = TypeVar("ConfigT", bound=TrainConfig)
RECIPE, RUN, CHECKPOINTS = "recipe.toml", "run.json", "checkpoints"
PROVENANCE = frozenset({"cache", "videos", "versions", "ranks"})
REPRODUCE, METHODS = "reproduce.sh", "methods.md"


class RunFolder:
    """A run's folder, made or found.

    Args:
        path: Where; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RUN).exists()

    def facts(self) -> dict[str, Any]:
        """Returns what ``begin`` wrote down.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            facts: dict[str, Any] = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"'{self.path / RUN}' cannot be read: {error}.") from None
        return facts

    def config(self, kind: type[ConfigT]) -> ConfigT:
        """Returns the recipe that ``begin`` wrote down.

        Raises:
            ConfigError: it cannot be read, or is of another kind.
        """
        try:
            return kind.model_validate(self._recipe())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"'{self.path / RECIPE}' is no recipe that trains here: {where}: {first['msg']}."
            ) from None

    def begin(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """Writes down what the run is; of a run that is there, checks that it is the same.

        Args:
            config: The resolved recipe.
            facts: Stage, keys of views, hash of ``init``, in JSON's types: what else decides the
                result. Those in ``PROVENANCE`` may differ.

        Raises:
            ConfigError: another run lies there; every difference is shown.
            NoSpaceError: the disk is full.
        """
        recipe = recipe_table(config)
        if self.exists:
            before = _completed(self._recipe(), type(config))
            differences = _differences(before, recipe) + _differences(self.facts(), facts)
            if differences:
                raise ConfigError(
                    f"'{self.path}' is a run of another recipe: {'; '.join(differences)}. "
                    "Expected the same to resume it, or another folder for another run."
                )
        elif self.path.exists() and any(p.name != ".lock" for p in self.path.iterdir()):
            raise ConfigError(
                f"'{self.path}' holds other files and is no run; expected a new folder."
            )
        write_whole(self.path / RECIPE, tomli_w.dumps(recipe).encode())
        write_whole(self.path / RUN, (json.dumps(dict(facts), indent=2) + "\n").encode())

    def write_text(self, name: str, text: str, *, executable: bool = False) -> None:
        """Writes one of the run's texts."""
        write_whole(self.path / name, text.encode())
        if executable:
            (self.path / name).chmod(0o755)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out of the folder while it is trained in.

        Raises:
            ConfigError: one is in.
        """
        refusal = f"another process trains in '{self.path}'; expected a folder of its own."
        with held_alone(self.path, refusal):
            yield

    def _recipe(self) -> dict[str, Any]:
        path = self.path / RECIPE
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"'{path}' cannot be read: {error}.") from None


def recipe_table(config: TrainConfig) -> dict[str, Any]:
    """Returns a resolved recipe as TOML's types; a key without a value is left out."""
    written: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    if config.crop is not None:
        written["crop"] = "x".join(map(str, config.crop))
    return written


def _completed(recipe: dict[str, Any], kind: type[TrainConfig]) -> dict[str, Any]:
    """Returns a recipe that was written down with the defaults of keys that are newer than it."""
    try:
        return recipe_table(kind.model_validate(recipe))
    except ValidationError:
        return recipe  # a key it has is gone: that is a difference, and shown as one


def _differences(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    keys = sorted((before.keys() | wanted.keys()) - FREE_KEYS - PROVENANCE)
    return [
        f"{key} is {_told(before.get(key))} there and {_told(wanted.get(key))} here"
        for key in keys
        if before.get(key) != wanted.get(key)
    ]


def _told(value: object) -> str:
    return "none" if value is None else json.dumps(value)
