"""Chains: recipes of ``kind = "chain"``, several commands one after another."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from fcache.config.predict import PredictConfig
from fcache.config.recipes import load_recipe
from fcache.config.settings import Settings, layered, resolve
from fcache.config.stages import ExtractConfig, ProbeConfig
from fcache.config.train import SegmenterConfig
from fcache.errors import ConfigError, nearest

OUT = "out"  # what a chain's own folder is called in its words
# What the settings of a command are; those without are plain words.
KINDS: Mapping[str, type[Settings]] = {
    "extract": ExtractConfig,
    "probe": ProbeConfig,
    "train": SegmenterConfig,
    "predict": PredictConfig,
}
_PLACE = re.compile(r"\{(\w+)\}")


class ChainStep(Settings):
    """One command of a chain.

    Attributes:
        name: What its settings are called by: ``NAME.key=value``.
        command: The ``fcache`` command.
        words: What follows it; ``{name}`` stands for an input, ``{out}`` for the chain's folder.
        settings: Its ``key=value``; the command line stands over them.
    """

    name: str
    command: Literal["extract", "copy", "verify", "probe", "train", "predict", "eval"]
    words: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def places(self) -> set[str]:
        """The placeholders in its words and settings."""
        return set(_PLACE.findall(" ".join([*self.words, *map(as_text, self.settings.values())])))


class Chain(Settings):
    """A recipe of ``kind = "chain"``.

    Attributes:
        about: What it does, in a line.
        inputs: What has to be given as ``NAME=PATH``, and what that is.
        steps: In order.
    """

    kind: Literal["chain"]
    about: str
    inputs: dict[str, str] = Field(default_factory=dict)
    steps: tuple[ChainStep, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Chain:
        names = [step.name for step in self.steps]
        problems = [f"step '{name}' is there twice" for name in names if names.count(name) > 1]
        problems += [
            f"step '{name}' is called like an input" for name in names if name in self.inputs
        ]
        for step in self.steps:
            for place in sorted(step.places - {OUT, *self.inputs}):
                problems.append(
                    f"step '{step.name}' holds {{{place}}}, which is no input"
                    f"{nearest(place, [OUT, *self.inputs])}"
                )
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self


@dataclass(frozen=True, slots=True)
class ChainCommand:
    """A step whose placeholders are filled in.

    Attributes:
        name: The step's.
        command: The ``fcache`` command.
        words: What follows it, less the settings.
        settings: As text, in order.
    """

    name: str
    command: str
    words: tuple[str, ...]
    settings: Mapping[str, str]

    @property
    def argv(self) -> list[str]:
        """The words after ``fcache``."""
        return [self.command, *self.words, *(f"{k}={v}" for k, v in self.settings.items())]


def load_chain(name: str) -> Chain:
    """Returns a chain, by shipped name or by path.

    Raises:
        ConfigError: there is none of that name, it is a stage, or it is not well formed.
    """
    table = load_recipe(name)
    if table.get("kind") != "chain":
        raise ConfigError(
            f"recipe '{name}' is one stage, '{table.get('stage', 'unnamed')}'; expected a chain.",
            run="fcache run --list",
        )
    return resolve(Chain, table, {})


def chain_commands(chain: Chain, given: Mapping[str, str], out: Path) -> tuple[ChainCommand, ...]:
    """Fills in a chain's placeholders and settings.

    Args:
        chain: The chain.
        given: Its inputs, and settings as ``STEP.key``.
        out: The folder all of it goes to.

    Raises:
        ConfigError: every input that is missing and every key that is none, together.
    """
    steps = [step.name for step in chain.steps]
    problems = [
        f"{name}= is not given; expected {about}"
        for name, about in chain.inputs.items()
        if name not in given
    ]
    for key in given:
        step, dot, _ = key.partition(".")
        if key not in chain.inputs and not (dot and step in steps):
            known = [*chain.inputs, *(f"{name}.KEY" for name in steps)]
            problems.append(
                f"'{key}' is neither an input nor a step's setting{nearest(key, known)}; expected "
                f"one of: {', '.join(known)}"
            )
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    places = {**{name: given[name] for name in chain.inputs}, OUT: str(out)}
    return tuple(_command(step, given, places) for step in chain.steps)


def as_text(value: object) -> str:
    """Returns a TOML value the way a ``key=value`` word says it."""
    return value if isinstance(value, str) else json.dumps(value)


def _command(step: ChainStep, given: Mapping[str, str], places: Mapping[str, str]) -> ChainCommand:
    def filled(text: str) -> str:
        return _PLACE.sub(lambda found: places[found[1]], text)

    own = {key: filled(as_text(value)) for key, value in step.settings.items()}
    prefix = f"{step.name}."
    newer = {
        key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)
    }
    kind = KINDS.get(step.command)
    settings = {**own, **newer} if kind is None else layered(kind, own, newer)
    return ChainCommand(step.name, step.command, tuple(map(filled, step.words)), settings)
