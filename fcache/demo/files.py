"""The files of the rendered set: H.264 videos and VIPSeg-shaped panoptic labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """One frame: RGB, its panoptic ids (0 void), and each id's category."""

    image: NDArray[np.uint8]  # [H, W, 3]
    ids: NDArray[np.int32]  # [H, W]
    categories: dict[int, int]


def write_labels(
    folder: Path, frames: Sequence[RenderedFrame]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Writes one PNG a frame; returns VIPSeg's ``images`` and ``annotations`` of the video."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, frame in enumerate(frames):
        stem, file_name = f"{number:05d}", f"{number:05d}.png"
        bands = [(frame.ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
        Image.fromarray(np.stack(bands, axis=-1)).save(folder / file_name)
        height, width = frame.ids.shape
        segments = [
            {
                "id": segment_id,
                "category_id": category,
                "iscrowd": 0,
                "area": int((frame.ids == segment_id).sum()),
            }
            # Stuff first: STQ treats a thing that opens a video's first list as crowd.
            for category, segment_id in sorted((c, i) for i, c in frame.categories.items())
        ]
        images.append({"id": stem, "file_name": file_name, "width": width, "height": height})
        annotations.append({"image_id": stem, "file_name": file_name, "segments_info": segments})
    return images, annotations


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> None:
    """Writes RGB frames [H, W, 3], H and W even, as H.264, tagged BT.709 limited range."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the last two, x264 writes other bytes from run to run and from one CPU to another.
    options = {"crf": "16", "preset": "medium", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        for index, image in enumerate(frames):
            if index == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709
            )
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
