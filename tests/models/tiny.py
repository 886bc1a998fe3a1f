"""A segmenter that runs in milliseconds, and inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor

from fcache.models import (
    HungarianMatcher,
    MaskedDecoder,
    PixelDecoder,
    PyramidAdapter,
    Segmenter,
    SetCriterion,
    Targets,
    ViTAdapter,
)

DIM = 32
NUM_CATEGORIES = 5
GRID = (4, 6)


def segmenter(adapter=None, *, reid: bool = False, num_queries: int = 12, **options) -> Segmenter:
    """Two encoder layers, four decoder layers: level indexes wrap around."""
    torch.manual_seed(0)
    adapter = adapter or ViTAdapter(DIM, 2, prior_width=8, **options)
    return Segmenter(
        adapter,
        PixelDecoder(adapter.channels, 32, num_layers=2, ffn_dim=64),
        MaskedDecoder(
            NUM_CATEGORIES, 32, num_queries=num_queries, num_layers=4, ffn_dim=64, reid=reid
        ),
    )


def pyramid_segmenter() -> Segmenter:
    return segmenter(PyramidAdapter((8, 16, 24, 40)))


def stage_outputs(batch: int = 2, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *GRID, DIM, generator=generator) for _ in range(4)]


def pixels(batch: int = 2, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 16 * GRID[0], 16 * GRID[1], generator=generator)


def rectangles(*boxes: tuple[int, int, int, int], classes: list[int]) -> Targets:
    """Targets of rectangular segments: (top, left, bottom, right) in pixels."""
    masks = torch.zeros(len(boxes), 16 * GRID[0], 16 * GRID[1], dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Targets(torch.tensor(classes, dtype=torch.int64), masks)


def two_targets() -> list[Targets]:
    return [
        rectangles((0, 0, 32, 48), (32, 0, 64, 96), classes=[1, 3]),
        rectangles((8, 8, 24, 24), (0, 48, 64, 96), (40, 0, 64, 40), classes=[0, 4, 2]),
    ]


def criterion(num_points: int = 96) -> SetCriterion:
    return SetCriterion(NUM_CATEGORIES, HungarianMatcher(num_points), num_points=num_points)
