"""Mask2Former's pixel decoder: deformable attention over three levels, then one FPN level.

"Masked-attention Mask Transformer for Universal Image Segmentation", section 3.1. Inside, levels
run from coarse to fine (strides 32, 16, 8), the order of the official weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcache.models.deformable import DeformableAttention
from fcache.models.layers import FeedForward, fill_c2_xavier
from fcache.models.positions import pixel_centres, sine_positions

NUM_GROUPS = 32
NUM_LEVELS = 3


class ConvGroupNorm(nn.Module):
    """A convolution that keeps the size, and a group norm."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_dim)

    def forward(
        self,
        maps: Tensor,  # [B, in_dim, H, W]
    ) -> Tensor:  # [B, out_dim, H, W]
        """Returns the normed map, without activation."""
        out: Tensor = self.norm(self.conv(maps))
        return out


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels and a feed-forward, each normed afterwards."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, NUM_LEVELS)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        tokens: Tensor,  # [B, S, C]
        positions: Tensor,  # [1, S, C]
        centres: Tensor,  # [1, S, 1, 2]
        level_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:  # [B, S, C]
        """Returns the updated tokens."""
        read = self.attention(tokens + positions, centres, tokens, level_shapes)
        tokens = self.attention_norm(tokens + read)
        out: Tensor = self.ffn_norm(tokens + self.ffn(tokens))
        return out


class PixelDecoder(nn.Module):
    """Mask features at stride 4 and three levels for the masked decoder, from a pyramid.

    Args:
        channels: Channels of the pyramid's four maps, finest first.
        dim: Channels of everything after the projections.
        num_heads: Heads of the deformable attention.
        num_layers: Encoder layers.
        ffn_dim: Width of the feed-forwards; official models have 1024 whatever their recipe says.
        full_precision: Runs in float32 under autocast too, as the official decoder does.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int = 256,
        *,
        num_heads: int = 8,
        num_layers: int = 6,
        ffn_dim: int = 1024,
        full_precision: bool = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.full_precision = full_precision
        finest, *coarser = channels
        self.projections = nn.ModuleList(
            ConvGroupNorm(width, dim, 1, bias=True) for width in reversed(coarser)
        )
        self.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.lateral = ConvGroupNorm(finest, dim, 1, bias=False)
        self.smooth = ConvGroupNorm(dim, dim, 3, bias=False)
        self.mask_features = nn.Conv2d(dim, dim, 1)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.level_embed)
        for projection in self.projections:
            assert isinstance(projection, ConvGroupNorm)
            nn.init.xavier_uniform_(projection.conv.weight)
            nn.init.zeros_(projection.conv.get_parameter("bias"))
        for conv in (self.lateral.conv, self.smooth.conv, self.mask_features):
            fill_c2_xavier(conv)

    def forward(
        self,
        pyramid: Sequence[Tensor],  # [B, C0, 8H, 8W], [B, C1, 4H, 4W] ... [B, C3, H, W]
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns mask features [B, dim, 8H, 8W] and levels [B, dim, H, W] ... [B, dim, 4H, 4W].

        The levels come coarsest first.
        """
        if not self.full_precision:
            return self._decode(pyramid)
        with torch.autocast(pyramid[0].device.type, enabled=False):
            dtype = self.level_embed.dtype
            return self._decode([level.to(dtype) for level in pyramid])

    def _decode(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        finest, *coarser = pyramid
        maps = [
            project(level)
            for project, level in zip(self.projections, reversed(coarser), strict=True)
        ]
        levels = self._encode(maps)
        upsampled = F.interpolate(
            levels[-1], tuple(finest.shape[-2:]), mode="bilinear", align_corners=False
        )
        fine = F.relu(self.smooth(self.lateral(finest) + upsampled))
        return self.mask_features(fine), levels

    def _encode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        level_shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        positions = torch.cat(
            [
                sine_positions(*shape, self.dim, tokens.device).flatten(2).transpose(1, 2) + embed
                for shape, embed in zip(level_shapes, self.level_embed, strict=True)
            ],
            1,
        )
        centres = pixel_centres(level_shapes, tokens.device)
        for layer in self.layers:
            tokens = layer(tokens, positions, centres, level_shapes)
        parts = tokens.split([height * width for height, width in level_shapes], 1)
        return [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(parts, level_shapes, strict=True)
        ]
