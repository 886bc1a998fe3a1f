"""Small real videos, encoded on the spot, whose every frame can be told from the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.sources.decode import decode


def moving_frames(num_frames: int, height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """Smooth noise that moves 2 pixels a frame: [T, height, width, 3] uint8."""
    rng = np.random.default_rng(seed)
    shape = (height + num_frames + 8, width + 2 * num_frames + 8, 3)
    noise = rng.integers(0, 255, shape).astype(np.float32)
    for axis in (0, 1):
        noise = sum(np.roll(noise, shift, axis) for shift in range(-3, 4)) / 7
    noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
    frames = [noise[t : t + height, 2 * t : 2 * t + width] for t in range(num_frames)]
    return np.stack(frames).astype(np.uint8)


def encode(
    path: Path,
    frames: Sequence[np.ndarray] | np.ndarray,
    *,
    codec: str = "libx264",
    rate: int = 24,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times_ms: Sequence[int] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Writes frames of one size as a video; ``times_ms`` makes its rate variable."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.options = {"g": "12", **(options or {})}
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, rgb in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            picture.pts = index if times_ms is None else times_ms[index]
            picture.time_base = Fraction(1, rate) if times_ms is None else Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def read_all(path: Path, selection: Selection | None = None) -> tuple[list[tuple], str]:
    """Every frame as (pixel hash, pts_us, name), and the reason the video is broken or ''."""
    frames = []
    try:
        for frame in decode(path, "video", selection or Selection()):
            assert frame is not None
            digest = hashlib.sha256(frame.rgb.tobytes()).hexdigest()
            frames.append((digest, frame.pts_us, frame.name))
    except SourceError as error:
        return frames, error.message
    return frames, ""


def media_data(data: bytes) -> tuple[int, int]:
    """Where an MP4's coded pictures lie: [first byte, end)."""
    start = data.index(b"mdat") - 4
    return start + 8, start + int.from_bytes(data[start : start + 4], "big")
