"""The identity of a view: everything that decides the stored values, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcache.backbones.description import Description
from fcache.backbones.identity import values_identity
from fcache.config import ExtractConfig
from fcache.extract.calibrate import Calibration
from fcache.manifest import SourceKind
from fcache.store.identity import digest, item_id
from fcache.store.layout import LAYOUT_VERSION
from fcache.store.root import check_root, view_attributes

DECODERS = {"video": "pyav", "image": "pillow"}


def view_identity(
    config: ExtractConfig,
    description: Description,
    weights_sha256: str,
    calibration_sha256: str | None = None,
) -> dict[str, Any]:
    """Returns the identity of the view a configuration makes.

    Decoder, torch and timm versions and the device are provenance, not identity: a difference
    warns, and ``verify`` decides.

    Args:
        config: The settings.
        description: The backbone they name.
        weights_sha256: Its weights.
        calibration_sha256: Of int8, the channel scales.
    """
    identity = {
        "layout": LAYOUT_VERSION,
        "tier": "backbone",
        **values_identity(config, description, weights_sha256),
        "decoder": DECODERS,
    }
    if config.dtype == "int8":
        identity["calibration"] = calibration_sha256
    return identity


def scale_rule(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what views share their calibration by: all but the tier, the flip and the crop."""
    apart = {"dtype", "calibration", "derived_from"}
    view = {key: value for key, value in identity["view"].items() if key not in CROPPING}
    return {**{k: v for k, v in identity.items() if k not in apart}, "view": view}


CROPPING = {"flip", "crop", "crop_seed"}


def selection_identity(config: ExtractConfig, kind: SourceKind) -> dict[str, Any]:
    """Returns a selection as it enters an item's name: only what departs from every frame.

    What makes a cached frame the same is part of it for folders alone: other sources' frames have
    no files of their own.
    """
    selection = config.selection.identity()
    by_name = kind == "frames" and config.reuse == "name"
    return {**selection, "reuse": config.reuse} if by_name else selection


def item_name(
    config: ExtractConfig,
    sha256: str,
    selection: Mapping[str, Any],
    video_id: str,
    draw: int | None,
    again: int = 0,
) -> str:
    """Returns the name of the item that a source is under a selection.

    What a crop is depends on the video's id besides its content: the id is drawn from.

    Args:
        config: The settings.
        sha256: The source's content.
        selection: From ``selection_identity``.
        video_id: As the manifest calls it.
        draw: Which crop.
        again: How many items of this kind lack frames that they had borrowed.
    """
    more: dict[str, Any] = {"again": again} if again else {}
    if draw is not None:
        more["draw"] = digest({"seed": config.crop_seed, "video": video_id, "draw": draw})
    return item_id(sha256, selection, **more)


def inherited(cache: Path, identity: Mapping[str, Any]) -> Calibration | None:
    """Returns the calibration of the oldest compact view of the same scale rule, if there is one.

    Raises:
        CacheError: the path is no cache this version reads, or a view is damaged.
    """
    if not (cache / "zarr.json").exists():
        return None
    check_root(cache)
    found: list[tuple[float, dict[str, Any]]] = []
    for path in sorted(cache.glob("*/zarr.json")):
        record = view_attributes(path.parent)
        is_derived = "derived_from" in record["identity"]
        if record["identity"]["dtype"] != "int8" or is_derived:
            continue
        if scale_rule(record["identity"]) == scale_rule(identity):
            found.append((record["provenance"].get("created_s", 0.0), record["calibration"]))
    if not found:
        return None
    return Calibration.from_json(min(found, key=lambda one: one[0])[1])
