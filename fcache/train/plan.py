"""What a run would read and train, told without writing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fcache.backbones.trained import TrainedPyramid
from fcache.config import SegmenterConfig
from fcache.train.build import build_segmenter, num_parameters
from fcache.train.inputs import open_inputs
from fcache.train.live import TrainedSegmenter
from fcache.train.source import live_settings


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """A run before it begins.

    Attributes:
        view: Key of the view that is trained on.
        val_view: Key of the one that is validated on.
        backbone: Whose stage outputs they are.
        targets: Which labels: ``panoptic`` or ``semantic``.
        backbone_runs: ``cached``, ``live`` or ``trained``: nowhere, in the loop, or there and it
            trains.
        live_frames: Frames that a backbone in the loop passes in training.
        live_val_frames: Likewise in all validations.
        num_trained: Trained parameters.
        num_by_part: Of adapter, pixel decoder, masked decoder, and a backbone that trains.
        epochs: How often the run sees every video.
        quarantined: Videos that the extraction left out, or that cannot be read, and why.
        notes: What was chosen, and why.
    """

    view: str
    val_view: str
    backbone: str
    backbone_runs: Literal["cached", "live", "trained"]
    live_frames: int
    live_val_frames: int
    targets: str
    num_categories: int
    num_videos: int
    num_val_frames: int
    split_by: str
    num_trained: int
    num_by_part: dict[str, int]
    epochs: float
    quarantined: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it in JSON's types."""
        return asdict(self)


def plan_training(
    cache: str | Path | None, config: SegmenterConfig, *, videos: str | Path | None = None
) -> TrainPlan:
    """Returns what a run would do, having checked that all it reads is there.

    Raises:
        CacheError: no such cache or view.
        ConfigError: the cache lacks what the labels need, or the adapter does not fit.
    """
    data, config, notes = open_inputs(cache, videos, config)
    with torch.device("meta"):
        module = build_segmenter(config, data.view.layout, len(data.categories))
    if config.backbone.trainable:
        settings = live_settings(config, data.view, is_trained=True)
        module = TrainedSegmenter(module, TrainedPyramid.outline(settings))
    return TrainPlan(
        view=data.view.key,
        val_view=data.val_view.key,
        backbone=data.view.identity["backbone"]["model"],
        backbone_runs=_runs(config),
        live_frames=config.steps * config.batch * config.num_frames,
        live_val_frames=len(data.frames) * _num_validations(config),
        targets=data.kind,
        num_categories=len(data.categories),
        num_videos=len(data.videos),
        num_val_frames=len(data.frames),
        split_by=data.split_by,
        num_trained=num_parameters(module),
        num_by_part={name: num_parameters(part) for name, part in module.named_children()},
        epochs=config.steps * config.batch / len(data.videos),
        quarantined=data.quarantined,
        notes=tuple(notes),
    )


def _runs(config: SegmenterConfig) -> Literal["cached", "live", "trained"]:
    if config.source != "live":
        return "cached"
    return "trained" if config.backbone.trainable else "live"


def _num_validations(config: SegmenterConfig) -> int:
    """Every ``val_every`` steps, and after the last."""
    return -(-config.steps // (config.val_every or config.steps))
