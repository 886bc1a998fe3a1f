"""A backbone as it enters a view's identity, and built again from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from fcache.backbones.backbone import Backbone
from fcache.backbones.build import describe, load
from fcache.backbones.description import Description
from fcache.config import BackboneSettings, ComputeDtype, ExtractConfig
from fcache.errors import ConfigError


def backbone_identity(description: Description, weights_sha256: str) -> dict[str, Any]:
    """Returns which network on which weights, in JSON's types."""
    return {
        "kind": description.kind,
        "model": description.model,
        "architecture": description.architecture,
        "blocks": list(description.blocks) if description.blocks else None,
        "patch": description.patch,
        "pos": description.pos,
        "stages": [asdict(stage) for stage in description.stages],
        "weights_sha256": weights_sha256,
    }


def normalisation_identity(description: Description) -> dict[str, Any]:
    """Returns how pixels are normalised, in JSON's types."""
    return {
        "mean": list(description.mean),
        "std": list(description.std),
        "padding": "zero after normalisation",
    }


def values_identity(
    config: ExtractConfig, description: Description, weights_sha256: str
) -> dict[str, Any]:
    """Returns what decides the values of stage outputs, wherever they are computed or kept."""
    return {
        "dtype": config.dtype,
        "backbone": backbone_identity(description, weights_sha256),
        "view": config.geometry.identity(),
        "normalisation": normalisation_identity(description),
        "compute_dtype": config.compute_dtype,
    }


def settings_of(
    identity: Mapping[str, Any],
    weights: str,
    *,
    model: str | None = None,
    compute_dtype: ComputeDtype | None = None,
) -> BackboneSettings:
    """Returns the settings that make the backbone of a view.

    Args:
        identity: The view's.
        weights: Where its weights are here.
        model: Its name as it was typed, with the tag that names the hub's weights.
        compute_dtype: The view's own by default.
    """
    made = identity["backbone"]
    is_plain = made["kind"] == "vit"
    return BackboneSettings(
        model=model or made["model"],
        weights=weights,
        blocks=made["blocks"],
        pos=made["pos"],
        patch=made["patch"] if is_plain else 16,
        compute_dtype=compute_dtype or identity["compute_dtype"],
    )


def load_same(
    identity: Mapping[str, Any],
    settings: BackboneSettings,
    *,
    device: torch.device,
    compile: bool = False,  # noqa: A002 - the recipe's key
) -> Backbone:
    """Returns the backbone of a view, having compared architecture and weights with the view's.

    Raises:
        ConfigError: the network or its weights are others than the view's; both are shown.
        WeightsError: the weights cannot be found, or belong to another architecture.
    """
    made = identity["backbone"]
    description = describe(settings)
    here = {
        **backbone_identity(description, made["weights_sha256"]),
        "normalisation": normalisation_identity(description),
    }
    there = {**made, "normalisation": identity["normalisation"]}
    differing = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if differing:
        key = differing[0]
        raise ConfigError(
            f"model='{settings.model}' is another network here than the view was made with: "
            f"{key} is {there.get(key)} there and {here.get(key)} here. Expected the timm version "
            "of the view's provenance."
        )
    backbone = load(settings, device=device, compile=compile)
    found, wanted = backbone.weights_sha256, made["weights_sha256"]
    if found != wanted:
        raise ConfigError(
            f"weights='{settings.weights}' hash to {found}, those of the view to {wanted}; "
            "expected weights= to name the weights that the view was made with."
        )
    return backbone
