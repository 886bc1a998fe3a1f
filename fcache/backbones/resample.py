"""Patch kernels and position embeddings at other sizes than they were trained at.

DINOv2's own rules and timm's differ; each is spelt out, because features depend on it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fcache.config import PositionRule


def resize_kernel(
    kernel: Tensor,  # [D, 3, p, p]
    patch: int,  # pixels
) -> Tensor:  # [D, 3, patch, patch]
    """Returns the patch embedding's kernel for another patch size, as DVIS++ resizes it.

    Bilinear with aligned corners and no rescaling by area, in float32.
    """
    if tuple(kernel.shape[-2:]) == (patch, patch):
        return kernel
    return F.interpolate(kernel.float(), (patch, patch), mode="bilinear", align_corners=True)


def default_rule(model: str) -> PositionRule:
    """Returns the position rule a timm model was trained with, by its name."""
    if "dinov2" not in model:
        return "timm"
    return "dinov2_reg" if "_reg" in model else "dinov2"


def resample_positions(
    positions: Tensor,  # [1, G * G, C]
    grid: tuple[int, int],  # (rows, columns) wanted
    rule: PositionRule,
) -> Tensor:  # [1, rows * columns, C]
    """Returns position embeddings for a token grid, in float32.

    The trained G x G grid is returned unchanged only for that same grid, so only for a square
    image. ``dinov2`` is Meta's rule for models without registers: bicubic at a scale of
    ((n + 0.1) / G), which samples other points than ``size=n`` would. ``dinov2_reg`` is Meta's
    rule for models with registers (size, antialias). ``timm`` is timm's (size, antialias).
    """
    side = math.isqrt(positions.shape[1])
    if grid == (side, side):
        return positions.float()
    square = positions.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if rule == "dinov2":
        scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        resized = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
    else:
        resized = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
    assert resized.shape[-2:] == torch.Size(grid)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)
