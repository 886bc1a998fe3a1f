"""A micro-batch as it was read, and on the device that uses it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fcache.data.canvas import ENLARGED
from fcache.data.features import Features
from fcache.data.sampling import ClipRequest
from fcache.data.targets import ClipTargets
from fcache.data.windows import cut
from fcache.store.cache import Clip


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBatch:
    """B clips of T frames of one geometry, ready for a model; frames of a clip lie together.

    Attributes:
        stages: Four of [B*T, h, w, C].
        pixels: [B*T, 3, H, W] float32, normalised, zero outside the valid area; 16 pixels a token.
        targets: Of each clip.
        extents: Of each clip, the valid part (x, y) of width and height.
        names: Of each image, B*T; no two of a run have the same.
    """

    stages: tuple[Tensor, ...]
    pixels: Tensor
    targets: tuple[ClipTargets, ...]
    extents: tuple[tuple[float, float], ...]
    names: tuple[str, ...]

    @property
    def num_clips(self) -> int:
        """B."""
        return len(self.targets)

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.names) // len(self.targets)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """B clips of T frames of one geometry, as they were read.

    Its memory is used again: it is valid until the loader is asked for the next step.

    Attributes:
        clip: All B*T frames as one clip, as stored.
        requests: Of each clip.
        targets: Of each clip, in memory that is used again too.
        source: Whose features they are.
        copies: Recorded behind copies to a GPU, which must be over before the memory is used again.
    """

    clip: Clip
    requests: tuple[ClipRequest, ...]
    targets: tuple[ClipTargets, ...]
    source: Features
    copies: list[torch.cuda.Event] = field(default_factory=list)

    @property
    def valid(self) -> tuple[tuple[int, int], ...]:
        """Of each clip, the (height, width) that the frame covers of the stored canvas, pixels."""
        return tuple(self._valid(request) for request in self.requests)

    @property
    def names(self) -> tuple[str, ...]:
        """Of each image, B*T: the clip's name and the position in it."""
        return tuple(
            f"{request.name} [{position}]"
            for request in self.requests
            for position in range(len(request.frames))
        )

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> DeviceBatch:
        """Returns the batch on a device, stage outputs in ``dtype``.

        On the CPU, stage outputs that are stored in ``dtype`` share this batch's memory, and the
        targets do.
        """
        num_frames = len(self.requests[0].frames)
        pixels = self._normalised(device, num_frames)
        stages = self.source.stages(self.clip, self.requests, pixels, dtype)
        if self.source.whole:
            clips = zip(self.requests, pixels.split(num_frames), strict=True)
            stride = self.source.stride
            pixels = torch.cat([cut(frames, one.window, stride, axis=2) for one, frames in clips])
        height, width = pixels.shape[-2:]
        extents = tuple((w / width, h / height) for h, w in self.valid)
        if self.source.stride == ENLARGED:
            size = (height * 16 // ENLARGED, width * 16 // ENLARGED)
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        targets = tuple(one.to(device) for one in self.targets)
        if pixels.is_cuda:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(pixels.device))
            self.copies.append(copied)
        return DeviceBatch(tuple(stages), pixels, targets, extents, self.names)

    def _normalised(self, device: torch.device | str, num_frames: int) -> Tensor:
        """The pixels [B*T, 3, H, W], zero outside the valid area."""
        assert self.clip.pixels is not None
        raw = torch.from_numpy(self.clip.pixels).to(device, non_blocking=True)
        mean, std = (
            raw.new_tensor(v, dtype=torch.float32) for v in (self.source.mean, self.source.std)
        )
        pixels = ((raw.float() - mean) / std).permute(0, 3, 1, 2).contiguous()
        areas = [r.video.valid for r in self.requests] if self.source.whole else self.valid
        for index, (height, width) in enumerate(areas):
            frames = pixels[index * num_frames : (index + 1) * num_frames]
            frames[:, :, height:] = 0
            frames[:, :, :, width:] = 0
        return pixels

    def _valid(self, request: ClipRequest) -> tuple[int, int]:
        height, width = request.video.valid
        if request.window is None:
            return height, width
        y, x, h, w = (side * self.source.stride for side in request.window)
        return min(max(height - y, 0), h), min(max(width - x, 0), w)


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """What one rank sees of a step.

    Attributes:
        step: Of the optimizer, from 0.
        micro_batches: In order.
        waited_s: How long the loop waited for it, seconds.
    """

    step: int
    micro_batches: tuple[MicroBatch, ...]
    waited_s: float
