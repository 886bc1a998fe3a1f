"""The backbone in the loop: pixels are read, and stage outputs computed where the training runs.

Off a cache it sees the stored pixels, which are exactly what the extraction's backbone saw, so that
its outputs, rounded as the view stores them, are the view's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcache.backbones import Backbone
from fcache.data.sampling import ClipRequest
from fcache.data.windows import Window, cut
from fcache.errors import FeatureError
from fcache.models import Segmenter
from fcache.models.predictions import FrameOutput
from fcache.store.cache import Allocate, Clip, VideoFrames, View
from fcache.train.rounding import Rounding


class Canvases(Protocol):
    """Reads what a backbone sees of clips, in reader threads."""

    def read(self, request: ClipRequest, window: Window | None, out: npt.NDArray[np.uint8]) -> None:
        """Fills ``out`` [T, H, W, 3] with the canvas, or with a window of it."""
        ...


class StoredCanvases:
    """The canvases that a view keeps beside its stage outputs."""

    def __init__(self, view: View) -> None:
        self.view = view

    def read(self, request: ClipRequest, window: Window | None, out: npt.NDArray[np.uint8]) -> None:
        """Fills ``out`` [T, H, W, 3] with the canvas, or with a window of it.

        Raises:
            CacheCorruptError: stored bytes are not what was committed.
        """
        assert isinstance(request.video, VideoFrames)
        clip = _memory_of(out)
        self.view.read(request.video, request.frames, stages=(), window=window, out=clip)


class PixelFeatures:
    """Pixels alone, for a backbone that is part of the trained module.

    It sees the windows themselves, as official recipes crop images before the backbone.

    Args:
        canvases: Reads them.
        mean: Of the pixels' normalisation, RGB in units of 0..255.
        std: Likewise.
        stride: Pixels of the canvas to a token of the coarsest stage.
    """

    whole = False

    def __init__(
        self, canvases: Canvases, mean: Sequence[float], std: Sequence[float], stride: int
    ) -> None:
        self.canvases = canvases
        self.mean, self.std, self.stride = tuple(mean), tuple(std), stride

    def empty(self, requests: Sequence[ClipRequest], allocate: Allocate = np.empty) -> Clip:
        """Returns memory for clips one after another; smaller canvases lie at the top left."""
        num_frames = sum(len(request.frames) for request in requests)
        height, width = np.max([self._sides(request) for request in requests], axis=0).tolist()
        return _memory_of(allocate((num_frames, height, width, 3), "uint8").view(np.uint8))

    def read(self, request: ClipRequest, out: Clip) -> None:
        """Fills ``out`` with the pixels of a clip."""
        assert out.pixels is not None
        height, width = self._sides(request)
        window = None if self.whole else request.window
        place = out.pixels[:, :height, :width]
        if place.flags.c_contiguous:
            self.canvases.read(request, window, place)
            return
        canvas = np.empty(place.shape, np.uint8)
        self.canvases.read(request, window, canvas)
        out.pixels[...] = 0
        place[...] = canvas

    def stages(
        self, clip: Clip, requests: Sequence[ClipRequest], pixels: Tensor, dtype: torch.dtype
    ) -> list[Tensor]:
        """Returns nothing: the trained module computes them."""
        return []

    def _sides(self, request: ClipRequest) -> tuple[int, int]:
        """Height and width of what is read, pixels."""
        if self.whole or request.window is None:
            return request.video.bucket.height, request.video.bucket.width
        return request.window[2] * self.stride, request.window[3] * self.stride


class LiveFeatures(PixelFeatures):
    """Stage outputs of a frozen backbone that runs where the training does.

    It sees whole canvases: a window is cut out of its outputs, as it is out of cached ones.

    Args:
        canvases: Reads what it sees.
        backbone: On the device of the training.
        batch: Most frames in one pass of the backbone.
        rounding: What becomes of its outputs; they are left as they are by default. With it every
            pass is given ``batch`` frames, the last one more often where they are fewer: a last
            bit may depend on their number, and the extraction's passes were full.
    """

    whole = True

    def __init__(
        self,
        canvases: Canvases,
        backbone: Backbone,
        *,
        batch: int = 1,
        rounding: Rounding | None = None,
    ) -> None:
        description = backbone.description
        super().__init__(canvases, description.mean, description.std, description.stages[-1].stride)
        self.backbone = backbone
        self.batch = batch
        self.rounding = rounding

    def stages(
        self, clip: Clip, requests: Sequence[ClipRequest], pixels: Tensor, dtype: torch.dtype
    ) -> list[Tensor]:
        """Returns the stage outputs [B*T, h, w, C] in ``dtype``, of windows where there are some.

        Args:
            clip: What ``read`` filled.
            requests: Its B clips.
            pixels: [B*T, 3, H, W] float32, its pixels, normalised and zero in the border.
            dtype: Of the result.

        Raises:
            FeatureError: values that a view cannot store, where they are rounded as it does.
        """
        frames = pixels.split(len(requests[0].frames))
        buckets = [request.video.bucket for request in requests]
        if len(set(buckets)) == 1:
            together = (stage.split(len(frames[0])) for stage in self._computed(pixels))
            clips = list(zip(*together, strict=True))
        else:
            canvases = zip(frames, buckets, strict=True)
            clips = [tuple(self._computed(of[:, :, : b.height, : b.width])) for of, b in canvases]
        windows = [request.window for request in requests]
        stages = [
            self._cut(parts, windows, index) for index, parts in enumerate(zip(*clips, strict=True))
        ]
        if self.rounding is None:
            return [stage.to(dtype) for stage in stages]
        try:
            return [self.rounding(index, stage, dtype) for index, stage in enumerate(stages)]
        except FeatureError as error:
            names = ", ".join(request.name for request in requests)
            raise FeatureError(f"{names}: {error.message}") from None

    def _cut(self, clips: Sequence[Tensor], windows: Sequence[Window | None], index: int) -> Tensor:
        """Each clip's window of the stage ``index``, as one [B*T, h, w, C]."""
        scale = self.stride // self.backbone.description.stages[index].stride
        pairs = zip(clips, windows, strict=True)
        return torch.cat([cut(stage, window, scale, axis=1) for stage, window in pairs])

    def _computed(self, pixels: Tensor) -> list[Tensor]:  # 4 x [F, h, w, C] float32
        """The outputs of frames of one canvas."""
        passes = []
        for part in pixels.split(self.batch):
            num_missing = 0 if self.rounding is None else self.batch - len(part)
            filler = part[-1:].expand(num_missing, -1, -1, -1)
            outputs = self.backbone.stages(torch.cat([part, filler]))
            passes.append([stage[: len(part)] for stage in outputs])
        return [torch.cat(parts) for parts in zip(*passes, strict=True)]


class TrainedSegmenter(Segmenter):
    """A segmenter whose backbone trains with it.

    Args:
        segmenter: Its other parts.
        backbone: Normalised pixels to stage outputs.
    """

    def __init__(self, segmenter: Segmenter, backbone: torch.nn.Module) -> None:
        super().__init__(segmenter.adapter, segmenter.pixel_decoder, segmenter.masked_decoder)
        self.backbone = backbone

    def forward(
        self,
        stage_outputs: Sequence[Tensor],  # none
        pixels: Tensor | None,  # [B, 3, H, W] normalised, zero outside the valid area
        *,
        keep_aux: bool = True,
    ) -> FrameOutput:
        """Returns the predictions of every layer for a batch of frames."""
        return super().forward(self.backbone(pixels), pixels, keep_aux=keep_aux)


def _memory_of(pixels: npt.NDArray[np.uint8]) -> Clip:  # of [T, H, W, 3]
    """Pixels as a clip that a view fills: its block has an axis for chunks of a row."""
    height, width = pixels.shape[1:3]
    return Clip((), pixels, (height, width), "float32", (pixels[:, None],))
