"""The identity of a view: everything that decides the stored values, and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fcache.backbones.build import Description
from fcache.config import ExtractConfig, Selection
from fcache.store.layout import LAYOUT_VERSION

DECODERS = {"video": "pyav", "image": "pillow"}


def view_identity(
    config: ExtractConfig, description: Description, weights_sha256: str
) -> dict[str, Any]:
    """Returns the identity of the view a configuration makes.

    Decoder, torch and timm versions and the device are provenance, not identity: a difference
    warns, and ``verify`` decides.
    """
    return {
        "layout": LAYOUT_VERSION,
        "tier": "backbone",
        "dtype": config.dtype,
        "backbone": {
            "kind": description.kind,
            "model": description.model,
            "architecture": description.architecture,
            "blocks": list(description.blocks) if description.blocks else None,
            "patch": description.patch,
            "pos": description.pos,
            "stages": [asdict(stage) for stage in description.stages],
            "weights_sha256": weights_sha256,
        },
        "view": config.geometry.model_dump(mode="json"),
        "normalisation": {
            "mean": list(description.mean),
            "std": list(description.std),
            "padding": "zero after normalisation",
        },
        "compute_dtype": config.compute_dtype,
        "decoder": DECODERS,
    }


def selection_identity(selection: Selection) -> dict[str, Any]:
    """Returns a selection as it enters an item's name: only what departs from every frame."""
    return selection.model_dump(mode="json", exclude_defaults=True)
