"""Pictures of what a cache holds, drawn without a backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fcache.store.cache import VideoFrames, View
from fcache.viz.pca import pca_sheet

MAX_FRAMES = 4  # rows of the sheet


def draw_video(view: View, video: VideoFrames, path: Path) -> None:
    """Writes a PNG: some frames of a video, each beside the PCA of its four stages."""
    chosen = sorted({int(i) for i in np.linspace(0, len(video) - 1, min(MAX_FRAMES, len(video)))})
    clip = view.read(video, chosen)
    assert clip.pixels is not None
    stages = [clip.floats(stage).astype(np.float32) for stage in range(len(clip.stages))]
    sheet = pca_sheet(
        list(clip.pixels),
        [[stage[place] for stage in stages] for place in range(len(chosen))],
        names=[video.title(frame) for frame in chosen],
        valid_sizes=[clip.valid] * len(chosen),
    )
    sheet.save(path, format="PNG")
