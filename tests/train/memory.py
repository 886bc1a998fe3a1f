"""Clips that lie in memory, and a stage that trains on them: no cache, no config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fcache.models import MaskedDecoder, PixelDecoder, Segmenter, ViTAdapter
from fcache.train.segmenter import SegmenterStage
from fcache.train.synced_norm import SyncedBatchNorm2d

DIM, GRID, NUM_CATEGORIES = 32, (4, 6), 3


@dataclass(frozen=True)
class MemorySegments:
    classes: Tensor  # [N]
    masks: Tensor  # [N, T, H, W]


@dataclass(frozen=True)
class MemoryBatch:
    stages: tuple[Tensor, ...]
    pixels: Tensor
    targets: tuple[MemorySegments, ...]
    extents: tuple[tuple[float, float], ...]
    names: tuple[str, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> MemoryBatch:
        return MemoryBatch(
            tuple(stage.to(device, dtype) for stage in self.stages),
            self.pixels.to(device),
            tuple(MemorySegments(t.classes.to(device), t.masks.to(device)) for t in self.targets),
            self.extents,
            self.names,
        )


def clip(number: int, num_segments: int = 2) -> MemoryBatch:
    """One clip of one frame, its values a function of its number."""
    generator = torch.Generator().manual_seed(number)
    height, width = 16 * GRID[0], 16 * GRID[1]
    masks = torch.zeros(num_segments, 1, height, width, dtype=torch.bool)
    for index in range(num_segments):
        left = width * index // num_segments
        masks[index, :, :, left : width * (index + 1) // num_segments] = True
    classes = torch.arange(num_segments) % NUM_CATEGORIES
    return MemoryBatch(
        tuple(torch.randn(1, *GRID, DIM, generator=generator) for _ in range(4)),
        torch.randn(1, 3, height, width, generator=generator),
        (MemorySegments(classes, masks),),
        ((1.0, 1.0),),
        (f"clip {number}",),
    )


def joined_clips(clips: Sequence[MemoryBatch]) -> MemoryBatch:
    return MemoryBatch(
        tuple(torch.cat(parts) for parts in zip(*(c.stages for c in clips), strict=True)),
        torch.cat([c.pixels for c in clips]),
        tuple(target for c in clips for target in c.targets),
        tuple(extent for c in clips for extent in c.extents),
        tuple(name for c in clips for name in c.names),
    )


def stage(*, num_points: int = 64, lr: float = 0.05) -> SegmenterStage:
    torch.manual_seed(0)
    adapter = ViTAdapter(DIM, 2, prior_width=8, norm=SyncedBatchNorm2d)
    module = Segmenter(
        adapter,
        PixelDecoder(adapter.channels, 32, num_layers=1, ffn_dim=64),
        MaskedDecoder(NUM_CATEGORIES, 32, num_queries=6, num_layers=2, ffn_dim=64),
    )
    return SegmenterStage(
        module,
        [True, True, False],
        seed=3,
        lr=lr,
        weight_decay=0.0,
        num_points=num_points,
    )


def sgd(of: SegmenterStage) -> torch.optim.SGD:
    return torch.optim.SGD(
        [
            {"params": list(g.parameters), "lr": g.lr, "base_lr": g.lr, "names": g.names}
            for g in of.groups()
        ]
    )
