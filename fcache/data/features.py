"""Where a loader takes stage outputs from: the cache, or what stands in for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fcache.data.device import stages_on
from fcache.data.sampling import ClipRequest
from fcache.store.cache import Allocate, Clip, VideoFrames, View


class Features(Protocol):
    """Stage outputs and pixels of clips.

    ``empty`` and ``read`` run in reader threads, ``stages`` in the loop's: a live backbone fills
    in pixels alone, and computes stages there.

    Attributes:
        mean: Of the pixels' normalisation, RGB in units of 0..255.
        std: Likewise.
        stride: Stored pixels a token of the coarsest stage; 14 has its pixels enlarged by 8/7.
        whole: Whether pixels are read of whole canvases where a request has a window: a backbone
            sees the frame, and the window is cut out of what it gives.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride: int
    whole: bool

    def empty(self, requests: Sequence[ClipRequest], allocate: Allocate = np.empty) -> Clip:
        """Returns memory for clips of one geometry, one after another."""
        ...

    def read(self, request: ClipRequest, out: Clip) -> None:
        """Fills ``out``, of T frames, with a clip."""
        ...

    def stages(
        self, clip: Clip, requests: Sequence[ClipRequest], pixels: Tensor, dtype: torch.dtype
    ) -> list[Tensor]:
        """Returns the stage outputs [B*T, h, w, C] in ``dtype`` on the device of ``pixels``.

        Args:
            clip: What ``read`` filled.
            requests: Its B clips.
            pixels: [B*T, 3, H, W] float32, its pixels, normalised and zero in the border.
            dtype: Of the result.
        """
        ...


class CachedFeatures:
    """The stage outputs of a view."""

    whole = False

    def __init__(self, view: View) -> None:
        self.view = view
        normalisation = view.identity["normalisation"]
        self.mean = tuple(normalisation["mean"])
        self.std = tuple(normalisation["std"])
        self.stride = view.index.layout.strides[-1]

    def empty(self, requests: Sequence[ClipRequest], allocate: Allocate = np.empty) -> Clip:
        """Returns memory for clips of one geometry, one after another."""
        first = requests[0]
        num_frames = sum(len(request.frames) for request in requests)
        bucket = first.video.bucket
        return self.view.empty(bucket, num_frames, window=first.window, allocate=allocate)

    def read(self, request: ClipRequest, out: Clip) -> None:
        """Fills ``out`` with a clip.

        Raises:
            CacheCorruptError: stored bytes are not what was committed.
        """
        assert isinstance(request.video, VideoFrames)
        self.view.read(request.video, request.frames, window=request.window, out=out)

    def stages(
        self, clip: Clip, requests: Sequence[ClipRequest], pixels: Tensor, dtype: torch.dtype
    ) -> list[Tensor]:
        """Returns the stored stage outputs [B*T, h, w, C], moved as they are stored."""
        return stages_on(clip, pixels.device, dtype)
