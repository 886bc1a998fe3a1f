"""Deformable attention as a module: projections around ``fcache.ops.ms_deform_attn``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fcache.ops import ms_deform_attn


class DeformableAttention(nn.Module):
    """Reads a few points per head and level around each query's reference point.

    Values and outputs keep the full width: ViT-Adapter's ``deform_ratio`` is ignored in DVIS++,
    whose weights this follows. Offsets are in pixels of their level.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int = 4) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}.")
        self.layout = (num_heads, num_levels, num_points)
        num_samples = num_heads * num_levels * num_points
        self.offsets = nn.Linear(dim, num_samples * 2)
        self.logits = nn.Linear(dim, num_samples)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives each head its own direction, point p at distance p + 1, and equal weights."""
        num_heads, num_levels, num_points = self.layout
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], 1)
        directions = directions / directions.abs().amax(1, keepdim=True)
        distances = torch.arange(1, num_points + 1, dtype=torch.float32)
        grid = directions[:, None, None] * distances[:, None]  # [M, 1, P, 2]
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(grid.expand(-1, num_levels, -1, -1).flatten())
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        for linear in (self.value, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [1 or B, Q, 1 or L, 2] (x, y) in [0, 1], float32
        value: Tensor,  # [B, S, C], levels one after another
        level_shapes: Sequence[tuple[int, int]],  # L x (H, W)
    ) -> Tensor:  # [B, Q, C]
        """Returns the projected sum of the points read; the caller adds the residual."""
        num_heads, num_levels, num_points = self.layout
        heads = self.value(value).unflatten(-1, (num_heads, -1))
        offsets = self.offsets(query).unflatten(-1, (num_heads, num_levels, num_points, 2))
        logits = self.logits(query).unflatten(-1, (num_heads, num_levels * num_points))
        exact = torch.float64 if heads.dtype == torch.float64 else torch.float32
        read = ms_deform_attn(heads, level_shapes, reference_points.to(exact), offsets, logits)
        out: Tensor = self.output(read)
        return out
