"""The settings of ``fcache predict``: what it can be told by ``key=value``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fcache.config.settings import Settings

PredictFormat = Literal["vipseg", "vspw", "coco"]
EVERY_SPLIT = "all"

# What does not change a map; predictions that go on may change it.
FREE_PREDICT_KEYS = frozenset(
    {"heads", "videos", "split", "zip", "window", "held_bytes", "num_readers", "ahead", "device"}
)


class PredictConfig(Settings):
    """Everything ``fcache predict`` can be told by ``key=value``."""

    # what is predicted
    heads: tuple[str, ...] = ()  # more runs, or files of imported weights
    checkpoint: Literal["best", "last"] = "best"
    categories: str | None = None  # a manifest; by default the run's own
    split: str | None = None  # by default "val" where the view has one, else all videos
    videos: tuple[str, ...] = ()  # only these
    selection: dict[str, int | float | str] | None = None  # where a video has several
    max_frames: int | None = Field(default=None, ge=1)  # of each video, its first
    # what is written
    format: PredictFormat | None = None  # by default vipseg, of a run on semantic labels vspw
    semantic: Literal["queries", "segments"] = "queries"  # of vspw: where categories come from
    zip: bool = False
    min_score: float = Field(default=0.8, ge=0, lt=1)  # of a query's category
    min_overlap: float = Field(default=0.8, ge=0, le=1)  # part of its own mask that a query wins
    # how
    window: int = Field(default=3, ge=1)  # frames at once
    held_bytes: int = Field(default=1 << 31, ge=0)  # masks held between the two passes of a video
    num_readers: int = Field(default=2, ge=1)
    ahead: int = Field(default=2, ge=0)  # windows that are read before they are needed
    device: str = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> PredictConfig:
        if self.semantic != "queries" and self.format not in (None, "vspw"):
            raise ValueError(
                f"semantic={self.semantic} is of format=vspw; it has no meaning with "
                f"format={self.format}"
            )
        return self
