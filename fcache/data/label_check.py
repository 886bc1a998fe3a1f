"""Whether a manifest's labels are there and fit their images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fcache.data.label_images import check_size, label_header
from fcache.data.labels import LabelReader
from fcache.errors import LabelError
from fcache.manifest import Labels, Manifest, Video

MAX_TRIED = 300  # frames of a video file tried before it counts as unlabelled


@dataclass(slots=True)
class LabelReport:
    """What the labels of a manifest are worth."""

    labelled: set[str] = field(default_factory=set)  # video ids with at least one label
    problems: list[tuple[str, str]] = field(default_factory=list)  # (video id, reason)
    used: list[Labels] = field(default_factory=list)  # the entries that held a label


def check_labels(reader: LabelReader, manifest: Manifest) -> LabelReport:
    """Returns which videos have labels, and those whose label contradicts its image's size.

    Looks at the first labelled frame of each video, by the label's header only. A video without
    labels is no problem: test splits have none.
    """
    report = LabelReport()
    used: set[Labels] = set()
    for video in manifest.videos:
        try:
            used.update(_check(reader, manifest, video, report))
        except LabelError as error:
            report.problems.append((video.id, error.message))
    report.used = [entry for entry in reader.labels if entry in used]
    return report


def _check(
    reader: LabelReader, manifest: Manifest, video: Video, report: LabelReport
) -> list[Labels]:
    for frame_name in _frame_names(manifest, video):
        entries = reader.entries(video.id, frame_name, video.split)
        if not entries:
            continue
        report.labelled.add(video.id)
        path = reader.label_path(video.id, frame_name, video.split)
        if path is not None and video.height and video.width:
            size = label_header(path)[0]
            check_size(size, (video.height, video.width), f"label '{path}'")
        return entries
    return []


def _frame_names(manifest: Manifest, video: Video) -> Iterator[str]:
    path = manifest.locate(video.path, f"video '{video.id}'")
    if video.kind == "video":
        yield from (f"{i:05d}" for i in range(min(video.num_frames or 1, MAX_TRIED)))
    elif video.kind == "image":
        yield path.stem
    elif path.is_dir():
        yield from sorted(Path(name).stem for name in os.listdir(path))
