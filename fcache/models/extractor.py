"""ViT-Adapter's extractor: the pyramid's tokens read from one backbone stage, or each other.

The tokens of three scales lie one after another, finest first: with a token grid of H x W they
are (2H, 2W), (H, W) and (H/2, W/2), together 21/4 HW tokens, so both sides are even.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcache.models.deformable import DeformableAttention

NORM_EPS = 1e-6
Grid = tuple[int, int]


def scale_grids(grid: Grid) -> tuple[Grid, Grid, Grid]:
    """Returns the three grids of the pyramid's tokens around a token grid.

    Raises:
        ValueError: a side is odd; the coarsest scale would not divide.
    """
    height, width = grid
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(
            f"token grid {height}x{width} is not even; expected canvas sides in multiples of 32."
        )
    return (2 * height, 2 * width), (height, width), (height // 2, width // 2)


def split_scales(
    tokens: Tensor,  # [B, 21/4 HW, C]
    grid: Grid,
) -> list[Tensor]:  # [B, C, 2H, 2W], [B, C, H, W], [B, C, H/2, W/2]
    """Returns the three scales as maps; views where the tokens allow it."""
    grids = scale_grids(grid)
    parts = tokens.split([rows * columns for rows, columns in grids], 1)
    return [
        part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, grids, strict=True)
    ]


def join_scales(maps: list[Tensor]) -> Tensor:
    """Returns maps as one row of tokens, the inverse of ``split_scales``."""
    return torch.cat([scale.flatten(2).transpose(1, 2) for scale in maps], 1)


class ConvFeedForward(nn.Module):
    """A narrow MLP with one depthwise convolution that all three scales share."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)

    def forward(
        self,
        tokens: Tensor,  # [B, 21/4 HW, C]
        grid: Grid,
    ) -> Tensor:  # [B, 21/4 HW, C]
        """Returns the MLP's output; the caller adds the residual."""
        scales = split_scales(self.linear1(tokens), grid)
        mixed = join_scales([self.depthwise(scale) for scale in scales])
        out: Tensor = self.linear2(F.gelu(mixed))
        return out


class Extractor(nn.Module):
    """Deformable attention from the pyramid's tokens to what they read, then a narrow MLP.

    Args:
        dim: Channels of the backbone.
        num_heads: Attention heads; DVIS++ keeps 64 channels a head (24 for ViT-g).
        ffn_ratio: Width of the MLP over ``dim``.
        num_levels: 1 reads a stage output, 3 the pyramid's scales.
    """

    def __init__(
        self, dim: int, num_heads: int, ffn_ratio: float = 0.25, *, num_levels: Literal[1, 3] = 1
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.value_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = DeformableAttention(dim, num_heads, num_levels)
        self.ffn_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.ffn = ConvFeedForward(dim, int(dim * ffn_ratio))

    def forward(
        self,
        tokens: Tensor,  # [B, 21/4 HW, C]
        reference_points: Tensor,  # [1, 21/4 HW, 1, 2]
        value: Tensor,  # [B, HW or 21/4 HW, C]
        grid: Grid,
    ) -> Tensor:  # [B, 21/4 HW, C]
        """Returns the updated tokens."""
        levels = scale_grids(grid) if self.num_levels == 3 else [grid]
        read = self.attention(
            self.query_norm(tokens), reference_points, self.value_norm(value), levels
        )
        tokens = tokens + read
        out: Tensor = tokens + self.ffn(self.ffn_norm(tokens), grid)
        return out
