"""ViT-CoMer pieces: multi-receptive-field mixing (MRFP) and the interaction to the pyramid (CTI).

``ComerAdapter`` is the paper's "ViT-CoMer-Adapter": ViT-Adapter with MRFP before the extractors of
each stage. The interaction towards the backbone (CTI to-V) is left out: a cached backbone cannot
be written to.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcache.models.adapter import NUM_STAGES, ViTAdapter, reset_adapter
from fcache.models.extractor import (
    NORM_EPS,
    ConvFeedForward,
    Extractor,
    Grid,
    join_scales,
    split_scales,
)
from fcache.models.layers import Norm2d

NUM_EXTRA_CTI = 4


class MultiScaleConv(nn.Module):
    """For each scale, 3x3 depthwise on half the channels, 5x5 on the rest, a norm and a GELU."""

    def __init__(self, dim: int, norm: Norm2d) -> None:
        super().__init__()
        half = dim // 2
        if 2 * half != dim:
            raise ValueError(f"dim={dim} is odd; MRFP halves its channels.")
        self.small = nn.ModuleList(nn.Conv2d(half, half, 3, 1, 1, groups=half) for _ in range(3))
        self.large = nn.ModuleList(nn.Conv2d(half, half, 5, 1, 2, groups=half) for _ in range(3))
        self.norms = nn.ModuleList(norm(dim) for _ in range(3))

    def forward(
        self,
        tokens: Tensor,  # [B, 21/4 HW, C]
        grid: Grid,
    ) -> Tensor:  # [B, 21/4 HW, C]
        """Returns the tokens of all scales, activated."""
        mixed = []
        for index, scale in enumerate(split_scales(tokens, grid)):
            first, second = scale.chunk(2, 1)
            both = torch.cat([self.small[index](first), self.large[index](second)], 1)
            mixed.append(F.gelu(self.norms[index](both)))
        return join_scales(mixed)


class MRFP(nn.Module):
    """Multi-receptive-field mixing of the pyramid's tokens, without residual or norm before it."""

    def __init__(self, dim: int, hidden_dim: int, norm: Norm2d = nn.BatchNorm2d) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.convs = MultiScaleConv(hidden_dim, norm)
        self.linear2 = nn.Linear(hidden_dim, dim)

    def forward(
        self,
        tokens: Tensor,  # [B, 21/4 HW, C]
        grid: Grid,
    ) -> Tensor:  # [B, 21/4 HW, C]
        """Returns what replaces the tokens."""
        # The convolutions end in a GELU of their own: the official module applies it twice.
        out: Tensor = self.linear2(F.gelu(self.convs(self.linear1(tokens), grid)))
        return out


class Interaction(nn.Module):
    """CTI to-C: a stage is added at stride 16, then the three scales attend to each other.

    There is no residual around the attention: what goes on is the *normed* tokens.

    Args:
        dim: Channels of the backbone.
        num_heads: Attention heads.
        ffn_ratio: Width of the MLPs over ``dim``.
        ffn_first: Puts another MLP before the attention, as the last stage's extra ones have.
    """

    def __init__(
        self, dim: int, num_heads: int, ffn_ratio: float = 0.25, *, ffn_first: bool = False
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.value_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.scales = Extractor(dim, num_heads, ffn_ratio, num_levels=3)
        self.ffn_norm = nn.LayerNorm(dim, eps=NORM_EPS) if ffn_first else None
        self.ffn = ConvFeedForward(dim, int(dim * ffn_ratio)) if ffn_first else None

    def forward(
        self,
        tokens: Tensor,  # [B, 21/4 HW, C]
        centres: Tensor,  # [1, 21/4 HW, 1, 2]
        stage_tokens: Tensor,  # [B, HW, C]
        grid: Grid,
    ) -> Tensor:  # [B, 21/4 HW, C]
        """Returns the updated tokens."""
        tokens = _add_stage(tokens, stage_tokens)
        if self.ffn is not None and self.ffn_norm is not None:
            tokens = tokens + self.ffn(self.ffn_norm(tokens), grid)
        out: Tensor = self.scales(self.query_norm(tokens), centres, self.value_norm(tokens), grid)
        return out


def _add_stage(tokens: Tensor, stage_tokens: Tensor) -> Tensor:
    """Adds a stage output to the tokens of its own scale, the middle one."""
    start = 4 * stage_tokens.shape[1]
    end = start + stage_tokens.shape[1]
    middle = tokens[:, start:end] + stage_tokens
    return torch.cat([tokens[:, :start], middle, tokens[:, end:]], 1)


class ComerAdapter(ViTAdapter):
    """ViT-Adapter with MRFP before the extractors of each of the four stages.

    The two extra extractors of the last stage follow the main one directly, without an MRFP of
    their own: the paper does not say, and a block of ViT-CoMer has one.

    Args:
        dim: Channels of the stage outputs, and of the pyramid.
        num_heads: Heads of each extractor or interaction.
        mrfp_ratio: Width of MRFP over ``dim``.
        residual: Adds MRFP's output to the tokens; the last layer then starts at zero, so that
            training begins as ViT-Adapter. The official MRFP replaces the tokens.
        interaction: What reads the stages: ViT-Adapter's extractor (two extra in the last stage)
            or CTI to-C (four extra).
        prior_width: Channels of the spatial prior's stem.
        norm: Makes the norms of the spatial prior, of MRFP and of the outputs.
        checkpointing: Recomputes extractors in the backward pass; never MRFP, whose norms would
            count a batch twice.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mrfp_ratio: float = 1.0,
        residual: bool = False,
        interaction: Literal["extractor", "cti"] = "extractor",
        prior_width: int = 64,
        norm: Norm2d = nn.BatchNorm2d,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            dim, num_heads, prior_width=prior_width, norm=norm, checkpointing=checkpointing
        )
        self.residual = residual
        if interaction == "cti":
            self.extractors = nn.ModuleList(Interaction(dim, num_heads) for _ in range(NUM_STAGES))
            self.extra_extractors = nn.ModuleList(
                Interaction(dim, num_heads, ffn_first=True) for _ in range(NUM_EXTRA_CTI)
            )
        self.mrfps = nn.ModuleList(
            MRFP(dim, int(dim * mrfp_ratio), norm) for _ in range(NUM_STAGES)
        )
        for added in (self.extractors, self.extra_extractors, self.mrfps):
            reset_adapter(added)
        if residual:
            for mrfp in self.mrfps:
                nn.init.zeros_(mrfp.get_parameter("linear2.weight"))

    def interact(
        self,
        index: int,
        tokens: Tensor,  # [B, 21/4 HW, C]
        stage_tokens: Tensor,  # [B, HW, C]
        centres: Tensor,  # [1, 21/4 HW, 1, 2]
        grid: Grid,
    ) -> Tensor:  # [B, 21/4 HW, C]
        """Returns the tokens after MRFP and the extractors of one stage."""
        mixed = self.mrfps[index](tokens, grid)
        tokens = tokens + mixed if self.residual else mixed
        return super().interact(index, tokens, stage_tokens, centres, grid)
