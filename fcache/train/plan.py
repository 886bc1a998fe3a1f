"""What a run would read and train, told without writing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fcache.config import SegmenterConfig
from fcache.train.build import build_segmenter, num_parameters
from fcache.train.data import open_data


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """A run before it begins.

    Attributes:
        view: Key of the view that is trained on.
        val_view: Key of the one that is validated on.
        backbone: Whose stage outputs they are.
        targets: Which labels: ``panoptic`` or ``semantic``.
        num_trained: Trained parameters; the backbone's are not among them.
        num_by_part: Of adapter, pixel decoder and masked decoder.
        epochs: How often the run sees every video.
        quarantined: Videos that the extraction left out, and why.
    """

    view: str
    val_view: str
    backbone: str
    targets: str
    num_categories: int
    num_videos: int
    num_val_frames: int
    split_by: str
    num_trained: int
    num_by_part: dict[str, int]
    epochs: float
    quarantined: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it in JSON's types."""
        return asdict(self)


def plan_training(cache: str | Path, config: SegmenterConfig) -> TrainPlan:
    """Returns what a run would do, having checked that all it reads is there.

    Raises:
        CacheError: no such cache or view.
        ConfigError: the cache lacks what the labels need, or the adapter does not fit.
    """
    data = open_data(cache, config)
    with torch.device("meta"):
        module = build_segmenter(config, data.view.index.layout, len(data.categories))
    return TrainPlan(
        view=data.view.key,
        val_view=data.val_view.key,
        backbone=data.view.identity["backbone"]["model"],
        targets=data.kind,
        num_categories=len(data.categories),
        num_videos=len(data.videos),
        num_val_frames=len(data.frames),
        split_by=data.split_by,
        num_trained=num_parameters(module),
        num_by_part={name: num_parameters(part) for name, part in module.named_children()},
        epochs=config.steps * config.batch / len(data.videos),
        quarantined=data.quarantined,
    )
