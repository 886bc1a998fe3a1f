"""The segment lists beside panoptic PNGs, in VIPSeg's and in COCO's shape.

VIPSeg: ``annotations`` holds one entry a video, with ``video_id`` and its own ``annotations``.
COCO: ``annotations`` holds one entry an image. Both name a frame by ``file_name`` and list its
``segments_info``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fcache.errors import LabelError
from fcache.manifest import Category


@dataclass(frozen=True, slots=True)
class FrameSegments:
    """The segments of one frame, as columns in the JSON's order."""

    ids: np.ndarray  # [segments] int32, R + 256 G + 65536 B
    category_ids: np.ndarray  # [segments] int32, ids of the data set
    is_crowd: np.ndarray  # [segments] bool


@dataclass(slots=True)
class SegmentIndex:
    """Segments by video id (None in COCO's shape) and frame name."""

    videos: dict[str | None, dict[str, FrameSegments]] = field(default_factory=dict)
    categories: tuple[Category, ...] = ()

    def find(self, video_id: str, frame_name: str) -> FrameSegments | None:
        """Returns a frame's segments, or None.

        JSON of a single video answers for any video id: kept beside the video, it may call it
        otherwise.
        """
        frames = self.videos.get(video_id)
        if frames is None and (None in self.videos or len(self.videos) == 1):
            frames = next(iter(self.videos.values()))
        return None if frames is None else frames.get(frame_name)


def read_segments(path: Path) -> SegmentIndex:
    """Returns the segments that a JSON file lists.

    Raises:
        LabelError: the file cannot be read or has neither shape.
    """
    try:
        table = json.loads(path.read_bytes())
        index = SegmentIndex(categories=read_categories(table.get("categories", ())))
        for entry in table["annotations"]:
            if "video_id" in entry:
                index.videos[str(entry["video_id"])] = _frames(entry["annotations"])
            else:
                index.videos.setdefault(None, {}).update(_frames([entry]))
    except OSError as error:
        raise LabelError(f"panoptic JSON '{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(
            f"'{path}' is not panoptic JSON of VIPSeg's or COCO's shape, an 'annotations' list "
            f"with 'segments_info' for each frame: {error!r}."
        ) from error
    return index


def read_categories(rows: Iterable[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Returns the categories of a JSON list, in its order; unknown keys are left out."""
    return tuple(
        Category(
            id=row["id"],
            name=str(row["name"]),
            isthing=bool(row.get("isthing", False)),
            color=tuple(row.get("color", (0, 0, 0))),
        )
        for row in rows
    )


def _frames(entries: Iterable[Mapping[str, Any]]) -> dict[str, FrameSegments]:
    return {Path(entry["file_name"]).stem: _segments(entry["segments_info"]) for entry in entries}


def _segments(rows: list[Mapping[str, Any]]) -> FrameSegments:
    return FrameSegments(
        ids=np.array([row["id"] for row in rows], dtype=np.int32),
        category_ids=np.array([row["category_id"] for row in rows], dtype=np.int32),
        is_crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=np.bool_),
    )
