"""Small views and labels for clips: known values under any placement, without a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcache.data.labels import LabelReader
from fcache.data.sampling import ClipRequest
from fcache.data.videos import ClipVideo
from fcache.manifest import Category, Labels, Manifest, Video
from fcache.store.cache import StoreCache, View, create_root
from fcache.store.identity import item_id
from fcache.store.index import ViewIndex
from fcache.store.layout import Bucket
from fcache.store.records import ItemRequest, Name
from tests.store.making import PLAIN, PYRAMID, fill

NORMALISATION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {**PLAIN, "normalisation": NORMALISATION},
    "pyramid": {**PYRAMID, "normalisation": NORMALISATION},
    "patch14": {
        **PLAIN,
        "backbone": {**PLAIN["backbone"], "stages": [{"channels": 6, "stride": 14}] * 4},
        "normalisation": NORMALISATION,
    },
}
CATEGORIES = tuple(Category(id=10 + k, name=f"k{k}", isthing=k < 2) for k in range(4))


@dataclass(frozen=True)
class Placed:
    """How a frame lies on a canvas, in pixels."""

    source: tuple[int, int] = (48, 80)
    resize: tuple[int, int] = (48, 80)
    crop: tuple[int, int, int, int] | None = None  # y, x, height, width
    flip: bool = False
    canvas: tuple[int, int] | None = None

    @property
    def kept(self) -> tuple[int, int, int, int]:
        return self.crop or (0, 0, *self.resize)

    @property
    def bucket(self) -> Bucket:
        return Bucket(*(self.canvas or tuple(-(-side // 32) * 32 for side in self.kept[2:])))

    def fields(self) -> dict[str, Any]:
        y, x, height, width = self.kept
        return {
            "source_h": self.source[0],
            "source_w": self.source[1],
            "resize_h": self.resize[0],
            "resize_w": self.resize[1],
            "crop_y": y,
            "crop_x": x,
            "crop_h": height,
            "crop_w": width,
            "flip": self.flip,
        }


def by_pillow(label: np.ndarray, placed: Placed, fill: int) -> np.ndarray:
    """A label on its canvas, by whole images: the definition."""
    resized = Image.fromarray(label).resize(placed.resize[::-1], Image.Resampling.NEAREST)
    y, x, height, width = placed.kept
    crop = np.asarray(resized)[y : y + height, x : x + width]
    canvas = np.full((placed.bucket.height, placed.bucket.width), fill, label.dtype)
    canvas[:height, :width] = crop[:, ::-1] if placed.flip else crop
    return canvas


@dataclass(frozen=True)
class Made:
    """A video to be stored: as one full view, or as crops of it."""

    num_frames: int
    placed: tuple[Placed, ...] = (Placed(),)
    split: str = "train"
    crops: bool = False


def make_view(path: Path, videos: Mapping[str, Made], kind: str = "plain") -> View:
    """A cache of one view, whose values ``tests.store.making.values`` says."""
    create_root(path)
    index = ViewIndex.create(path, KINDS[kind], {"fcache": "test"})
    requests, names, lengths = [], [], {}
    for video_id, made in videos.items():
        for k, placed in enumerate(made.placed):
            draw = k if made.crops else None
            request = ItemRequest(
                item_id(video_id, {}, draw=str(draw)),
                video_id,
                {},
                placed.bucket,
                placed.fields(),
                made.num_frames,
                draw=draw,
            )
            requests.append(request)
            names.append(Name(video_id, request.item, made.split))
            lengths[request.item] = made.num_frames
    for name, item in index.reserve(requests, names).items():
        fill(index, item, lengths[name])
    return StoreCache(path).view()


@dataclass
class PanopticLabels:
    """Panoptic labels in VIPSeg's shape, of all videos in one JSON."""

    root: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, video: str, frame: int, ids: np.ndarray, segments: Sequence[Any]) -> None:
        """Adds a frame; a segment is (id, category id) or (id, category id, crowd)."""
        path = self.root / "pan" / video / f"{frame:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1)
        Image.fromarray(rgb.astype(np.uint8)).save(path)
        info = [
            {"id": row[0], "category_id": row[1], "iscrowd": int(len(row) > 2 and row[2])}
            for row in segments
        ]
        self.rows.setdefault(video, []).append(
            {"file_name": f"{frame:05d}.png", "segments_info": info}
        )

    def reader(self, videos: Sequence[Video] = ()) -> LabelReader:
        """Writes the JSON, and opens everything."""
        table = [{"video_id": video, "annotations": rows} for video, rows in self.rows.items()]
        (self.root / "panoptic.json").write_text(json.dumps({"annotations": table}))
        return LabelReader.from_manifest(
            Manifest(
                name="made",
                root=str(self.root),
                labels=(
                    Labels(
                        format="panoptic", path="pan/{video}/{frame}.png", json_path="panoptic.json"
                    ),
                ),
                categories=CATEGORIES,
                videos=tuple(videos),
            )
        )


def blocks(height: int, width: int, values: Sequence[int], seed: int, cell: int = 5) -> np.ndarray:
    """A map of blocky noise of some values, [height, width] int32."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.asarray(values, np.int32), (-(-height // cell), -(-width // cell)))
    return np.kron(coarse, np.ones((cell, cell), np.int32))[:height, :width]


def label_everything(
    root: Path, videos: Mapping[str, Made], size: tuple[int, int] | None = None
) -> LabelReader:
    """Panoptic labels of every frame: two things, a stuff and void."""
    labels = PanopticLabels(root)
    segments = [(301, 10), (70_000, 11), (5, 13)]
    for number, (video, made) in enumerate(videos.items()):
        for frame in range(made.num_frames):
            ids = blocks(
                *(size or made.placed[0].source), [0, 301, 70_000, 5], 100 * number + frame
            )
            labels.add(video, frame, ids, segments)
    return labels.reader()


def single_frames(videos: Sequence[ClipVideo]) -> list[ClipRequest]:
    """A clip of one frame for every labelled frame."""
    return [
        ClipRequest(video.draws[0], (frame,)) for video in videos for frame in video.labelled[0]
    ]
