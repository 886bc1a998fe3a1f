"""What a backbone is, said without its weights.

A ``Description`` is what a cache's identity and layout need; a ``Blueprint`` adds which tensors
decide the function, so that weights can be checked and hashed before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import timm
import torch
from torch import nn

from fcache.errors import ConfigError, nearest

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One of the four stage outputs: its channels, and canvas pixels per token."""

    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class Description:
    """Everything about a backbone but its weights.

    ``mean`` and ``std`` are in units of 0..255 RGB. ``blocks``, ``pos`` and ``patch`` (pixels a
    token) belong to a plain ViT; a pyramid has None, None and 16, the patch of its view geometry.
    ``architecture`` holds plain facts that decide the function, for a cache's identity.
    """

    kind: Literal["vit", "pyramid"]
    model: str
    stages: tuple[StageSpec, ...]
    blocks: tuple[int, ...] | None
    patch: int
    pos: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: dict[str, JSON]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A description, and the tensors that decide the function besides it.

    ``shapes`` names them as timm does; ``spare`` are further names that a checkpoint of this
    model may hold (heads, final norms, later blocks) and that are not read. ``pos_prefix`` is how
    many entries of ``pos_embed`` stand before its grid, None for a model without such a grid.
    """

    description: Description
    shapes: Mapping[str, Shape]
    spare: frozenset[str]
    pos_prefix: int | None = None


def split_name(model: str) -> str:
    """Returns timm's architecture name, without the tag that names its pretrained weights.

    Raises:
        ConfigError: timm has no such model; the nearest names are offered.
    """
    name = model.partition(".")[0]
    if not timm.is_model(name):
        raise ConfigError(
            f"model='{model}' is not a timm model{nearest(name, timm.list_models())}."
        )
    return name


def check_tag(model: str, error: RuntimeError) -> ConfigError:
    """Turns timm's refusal of a pretrained tag into an error that offers the tags it has."""
    name = model.partition(".")[0]
    tags = timm.list_pretrained(f"{name}.*")
    return ConfigError(f"model='{model}': {error} Known: {', '.join(tags) or name}.")


def pretrained_config(model: nn.Module) -> dict[str, Any]:
    """Returns timm's facts about a model's pretrained weights: tag, mean, std."""
    return cast("dict[str, Any]", model.pretrained_cfg)


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns a timm model's mean and standard deviation in units of 0..255 RGB."""
    config = pretrained_config(model)
    # Six decimals drop the noise of the product: 0.456 * 255 is 116.28000000000002 in binary.
    mean = tuple(round(255 * float(value), 6) for value in config["mean"])
    std = tuple(round(255 * float(value), 6) for value in config["std"])
    return mean, std


def float_shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    """Returns the shapes of the tensors that hold values, not counters or index tables."""
    return {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()
    }
