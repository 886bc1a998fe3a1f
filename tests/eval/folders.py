"""Ground truth and predictions written in the official layouts, for readers and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Rows = list[dict[str, Any]]


def save_ids(path: Path, ids: np.ndarray) -> None:
    """Writes a panoptic PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(path)


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Writes a one-channel PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def listed(frames: Mapping[str, Rows], suffix: str = ".png") -> Rows:
    """The entries of a video's frames."""
    return [
        {"file_name": f"{name}{suffix}", "image_id": name, "segments_info": rows}
        for name, rows in frames.items()
    ]


def write_vipseg(path: Path, videos: Mapping[str, Mapping[str, Rows]]) -> None:
    """Writes ground-truth JSON."""
    table = {
        "videos": [
            {"video_id": video, "images": [{"id": f, "file_name": f"{f}.jpg"} for f in frames]}
            for video, frames in videos.items()
        ],
        "annotations": [
            {"video_id": video, "annotations": listed(frames)} for video, frames in videos.items()
        ],
        "categories": [],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


def write_predictions(folder: Path, videos: Mapping[str, Mapping[str, Rows]]) -> None:
    """Writes ``pred.json`` as DVIS does: names of JPEGs, the video's id last."""
    rows = [
        {"annotations": listed(frames, ".jpg"), "video_id": video}
        for video, frames in videos.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pred.json").write_text(json.dumps({"annotations": rows}))


def write_case(root: Path, case: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a recorded ``vps`` case: ``truth``, ``truth.json``, ``prediction``."""
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    folders = (root / "truth", root / "prediction" / "pan_pred")
    for number, video in enumerate(case["videos"]):
        for side, folder, key in zip(sides, folders, ("gt", "pred"), strict=True):
            maps = arrays[f"{key}_{number}"]
            frames = names(len(maps))
            side[video["video_id"]] = dict(zip(frames, video[f"{key}_segments"], strict=True))
            for name, ids in zip(frames, maps, strict=True):
                save_ids(folder / video["video_id"] / f"{name}.png", ids)
    write_vipseg(root / "truth.json", sides[0])
    write_predictions(root / "prediction", sides[1])


def write_vspw(
    root: Path, videos: Mapping[str, tuple[np.ndarray, np.ndarray]], first: int = 1
) -> None:
    """Writes ``truth/data``, ``truth/val.txt`` and ``prediction`` from [T, H, W] labels."""
    for video, (truth, prediction) in videos.items():
        for name, mask, guess in zip(names(len(truth), first), truth, prediction, strict=True):
            save_labels(root / "truth/data" / video / "mask" / f"{name}.png", mask)
            save_labels(root / "prediction" / video / f"{name}.png", guess)
    # No newline at the end, as some editors leave it.
    (root / "truth/val.txt").write_text("\n".join(videos))


def names(num_frames: int, first: int = 0) -> Sequence[str]:
    """Frame names with five digits."""
    return [f"{first + number:05d}" for number in range(num_frames)]
