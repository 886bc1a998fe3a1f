"""The segment lists beside panoptic PNGs, in VIPSeg's and in COCO's shape.

VIPSeg: ``annotations`` holds one entry a video, with ``video_id`` and its own ``annotations``.
COCO: ``annotations`` holds one entry an image. Both name a frame by ``file_name`` and list its
``segments_info``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fcache.data.json_stream import JsonWalk
from fcache.errors import LabelError
from fcache.manifest import Category, Labels


@dataclass(frozen=True, slots=True)
class FrameSegments:
    """The segments of one frame, as columns in the JSON's order."""

    ids: np.ndarray  # [segments] int32, R + 256 G + 65536 B
    category_ids: np.ndarray  # [segments] int32, ids of the data set
    is_crowd: np.ndarray  # [segments] bool
    areas: np.ndarray  # [segments] int64, pixels as the JSON states them, -1 where it does not


class _ListedTwiceError(LabelError):
    """Two entries are for one frame."""


@dataclass(slots=True)
class ListedFrames:
    """Frames by their ``file_name`` without suffix, folders included."""

    by_name: dict[str, FrameSegments] = field(default_factory=dict)
    by_stem: dict[str, list[str]] = field(default_factory=dict)

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Adds the frames of a JSON list.

        Raises:
            LabelError: a frame is listed twice.
        """
        for entry in entries:
            path = PurePosixPath(entry["file_name"]).with_suffix("")
            if str(path) in self.by_name:
                raise _ListedTwiceError(
                    f"frame '{path}' is listed twice; expected one entry a frame."
                )
            self.by_name[str(path)] = segments_of(entry["segments_info"])
            self.by_stem.setdefault(path.name, []).append(str(path))

    def ending(self, names: Iterable[PurePosixPath]) -> FrameSegments | None:
        """Returns the frame whose name, folders included, ends one of ``names``, or None.

        Of several the name with the most folders counts.
        """
        ends = ["/".join(name.parts[i:]) for name in names for i in range(len(name.parts))]
        listed = [end for end in ends if end in self.by_name]
        return self.by_name[max(listed, key=lambda end: end.count("/"))] if listed else None

    def only(self, stem: str) -> FrameSegments | None:
        """Returns the frame of this stem, or None where no folder or several have one."""
        names = self.by_stem.get(stem, [])
        return self.by_name[names[0]] if len(names) == 1 else None


@dataclass(slots=True)
class SegmentIndex:
    """Segments by video id (None in COCO's shape) and frame name."""

    videos: dict[str | None, ListedFrames] = field(default_factory=dict)
    categories: tuple[Category, ...] = ()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Adds an item of the JSON's ``annotations``.

        Raises:
            LabelError: a frame is listed twice.
        """
        video_id = str(entry["video_id"]) if "video_id" in entry else None
        rows = [entry] if video_id is None else entry["annotations"]
        self.videos.setdefault(video_id, ListedFrames()).add(rows)

    def find(
        self, labels: Labels, image: Path, video_id: str, frame_name: str
    ) -> FrameSegments | None:
        """Returns a frame's segments, or None.

        JSON of a single video answers for any video id if it is kept for each video (``{video}``
        in ``json_path``), as it may call its video otherwise. In COCO's shape a frame is listed by
        the end of the image's path or of VIDEO/FRAME; other folders are passed over only where
        they cannot be those of another video.

        Args:
            labels: The entry whose ``json_path`` this is.
            image: The label image.
            video_id: The frame's video.
            frame_name: The frame's name, without suffix.
        """
        per_video = "{video}" in (labels.json_path or "")
        frames = self.videos.get(video_id)
        one_video = frames is not None or per_video or "{video}" not in labels.path
        if frames is None and None in self.videos:
            frames = self.videos[None]
        if frames is None and per_video and len(self.videos) == 1:
            frames = next(iter(self.videos.values()))
        if frames is None:
            return None
        names = [PurePosixPath(image.with_suffix("").as_posix())]
        names.append(PurePosixPath(video_id, frame_name))
        if names[1].parent.name == frame_name:  # a single image's id ends in its frame name
            names.append(names[1].parent)
        found = frames.ending(names)
        return frames.only(frame_name) if found is None and one_video else found


def read_segments(path: Path) -> SegmentIndex:
    """Returns the segments that a JSON file lists.

    Raises:
        LabelError: the file cannot be read, has neither shape, or lists a frame twice.
    """
    index, listed = SegmentIndex(), False
    with JsonWalk(path, "panoptic JSON") as walk:
        try:
            for key in walk.members():
                if key == "annotations":
                    listed = True
                    for _ in walk.items():
                        index.add(walk.value()[0])
                else:
                    value = walk.value()[0]
                    if key == "categories":
                        index.categories = read_categories(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _shapeless(path, repr(error)) from error
        except _ListedTwiceError as error:
            raise LabelError(f"in panoptic JSON '{path}' {error.message}") from None
    if not listed:
        raise _shapeless(path, "it has no 'annotations'")
    return index


def _shapeless(path: Path, why: str) -> LabelError:
    return LabelError(
        f"'{path}' is not panoptic JSON of VIPSeg's or COCO's shape, an 'annotations' list with "
        f"'segments_info' for each frame: {why}."
    )


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


def segments_of(rows: list[Mapping[str, Any]]) -> FrameSegments:
    """Returns a JSON list of segments as columns."""
    return FrameSegments(
        ids=np.array([row["id"] for row in rows], dtype=np.int32),
        category_ids=np.array([row["category_id"] for row in rows], dtype=np.int32),
        is_crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=np.bool_),
        areas=np.array([row.get("area", -1) for row in rows], dtype=np.int64),
    )
