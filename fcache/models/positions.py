"""Where tokens lie: sine position embeddings and reference points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TEMPERATURE = 10000.0
EPS = 1e-6


def sine_positions(
    height: int, width: int, num_channels: int, device: torch.device | str | None = None
) -> Tensor:  # [1, num_channels, height, width] float32
    """Returns the sine embedding of each cell, rows in the first half of the channels.

    Coordinates are counts from 1, scaled so that the last cell lies at 2 pi; sine and cosine
    alternate (Mask2Former, DETR). ``num_channels`` is a multiple of four.
    """
    num_axis = num_channels // 2
    exponents = torch.arange(num_axis, dtype=torch.float32, device=device) // 2 * 2 / num_axis
    periods = TEMPERATURE**exponents  # [N]
    rows, columns = (_waves(side, periods) for side in (height, width))
    rows = rows.t()[:, :, None].expand(-1, -1, width)
    columns = columns.t()[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])[None]


def _waves(num_cells: int, periods: Tensor) -> Tensor:  # [cells, N]
    counts = torch.arange(1, num_cells + 1, dtype=torch.float32, device=periods.device)
    angles = (counts / (num_cells + EPS) * (2 * math.pi))[:, None] / periods
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1)


def pixel_centres(
    level_shapes: Sequence[tuple[int, int]], device: torch.device | str | None = None
) -> Tensor:  # [1, sum of H * W, 1, 2] float32, (x, y) in [0, 1]
    """Returns the centre of every cell of every level, row-major, levels in the order given."""
    levels = []
    for height, width in level_shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        levels.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2))
    return torch.cat([level.flatten(0, 1) for level in levels])[None, :, None]
