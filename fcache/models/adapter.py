"""ViT-Adapter without injectors: four stage outputs and the pixels become a pyramid.

The adapter of DVIS++ over a frozen ViT ("Vision Transformer Adapter for Dense Predictions",
section 3, extractors only): it never writes into the backbone, hence it is a function of what a
cache holds. Injectors are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fcache.models.deformable import DeformableAttention
from fcache.models.extractor import Extractor, Grid, scale_grids, split_scales
from fcache.models.layers import Norm2d
from fcache.models.positions import pixel_centres
from fcache.models.spatial_prior import SpatialPrior

NUM_STAGES = 4
NUM_EXTRA = 2


class ViTAdapter(nn.Module):
    """A pyramid at strides 4, 8, 16 and 32 from a plain backbone's stage outputs.

    Args:
        dim: Channels of the stage outputs, and of the pyramid.
        num_heads: Heads of each extractor: 16 for ViT-L, 24 for ViT-g.
        prior_width: Channels of the spatial prior's stem.
        ffn_ratio: Width of the extractors' MLP over ``dim``.
        norm: Makes the norms of the spatial prior and of the outputs; a synced form goes here.
        checkpointing: Recomputes the extractors in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        prior_width: int = 64,
        ffn_ratio: float = 0.25,
        norm: Norm2d = nn.BatchNorm2d,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.checkpointing = checkpointing
        self.spatial_prior = SpatialPrior(dim, prior_width, norm)
        self.level_embed = nn.Parameter(torch.empty(3, dim))
        self.extractors = nn.ModuleList(
            Extractor(dim, num_heads, ffn_ratio) for _ in range(NUM_STAGES)
        )
        self.extra_extractors = nn.ModuleList(
            Extractor(dim, num_heads, ffn_ratio) for _ in range(NUM_EXTRA)
        )
        self.upsample = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.norms = nn.ModuleList(norm(dim) for _ in range(4))
        reset_adapter(self)
        nn.init.normal_(self.level_embed)

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the pyramid's four maps."""
        return (self.dim, self.dim, self.dim, self.dim)

    def forward(
        self,
        stage_outputs: Sequence[Tensor],  # 4 x [B, H, W, C]
        pixels: Tensor | None,  # [B, 3, 16 H, 16 W] normalised, zero outside the valid area
    ) -> list[Tensor]:  # [B, C, 4H, 4W], [B, C, 2H, 2W], [B, C, H, W], [B, C, H/2, W/2]
        """Returns the pyramid, finest first.

        Raises:
            ValueError: not four stage outputs of this width, an odd token grid, or pixels of
                another size than 16 per token.
        """
        grid = self._check(stage_outputs, pixels)
        assert pixels is not None
        stages = [output.to(pixels.dtype) for output in stage_outputs]
        finest, *coarser = self.spatial_prior(pixels)
        tokens = torch.cat(
            [
                scale.flatten(2).transpose(1, 2) + embed
                for scale, embed in zip(coarser, self.level_embed, strict=True)
            ],
            1,
        )
        centres = pixel_centres(scale_grids(grid), pixels.device)
        for index, stage in enumerate(stages):
            tokens = self.interact(index, tokens, stage.flatten(1, 2), centres, grid)
        return self.fuse(finest, split_scales(tokens, grid), stages)

    def interact(
        self,
        index: int,
        tokens: Tensor,  # [B, 21/4 HW, C]
        stage_tokens: Tensor,  # [B, HW, C]
        centres: Tensor,  # [1, 21/4 HW, 1, 2]
        grid: Grid,
    ) -> Tensor:  # [B, 21/4 HW, C]
        """Returns the tokens after the extractors of one stage."""
        last = index == NUM_STAGES - 1
        for extractor in [self.extractors[index], *(self.extra_extractors if last else ())]:
            tokens = self.extract(extractor, tokens, centres, stage_tokens, grid)
        return tokens

    def extract(self, module: nn.Module, *inputs: Tensor | Grid) -> Tensor:
        """Returns a module's output, recomputed in the backward pass if so asked."""
        if self.checkpointing and torch.is_grad_enabled():
            # Nothing in an extractor is random, so there is no state to keep for the second pass.
            recomputed: Tensor = checkpoint(
                module, *inputs, use_reentrant=False, preserve_rng_state=False
            )
            return recomputed
        out: Tensor = module(*inputs)
        return out

    def fuse(
        self,
        finest: Tensor,  # [B, C, 4H, 4W] of the spatial prior
        maps: Sequence[Tensor],  # [B, C, 2H, 2W], [B, C, H, W], [B, C, H/2, W/2]
        stages: Sequence[Tensor],  # 4 x [B, H, W, C]
    ) -> list[Tensor]:  # [B, C, 4H, 4W], [B, C, 2H, 2W], [B, C, H, W], [B, C, H/2, W/2]
        """Returns the normed levels; each stage output is added to the level of its index."""
        levels = [self.upsample(maps[0]) + finest, *maps]
        for index, (stage, scale) in enumerate(zip(stages, (4.0, 2.0, 1.0, 0.5), strict=True)):
            planes = stage.permute(0, 3, 1, 2)
            if scale != 1:
                planes = F.interpolate(
                    planes, scale_factor=scale, mode="bilinear", align_corners=False
                )
            levels[index] = levels[index] + planes
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)]

    def _check(self, stage_outputs: Sequence[Tensor], pixels: Tensor | None) -> Grid:
        shapes = [tuple(output.shape) for output in stage_outputs]
        if len(shapes) != NUM_STAGES or len(set(shapes)) != 1 or len(shapes[0]) != 4:
            raise ValueError(f"stage outputs are {shapes}; expected four of one [B, H, W, C].")
        batch, height, width, dim = shapes[0]
        if dim != self.dim:
            raise ValueError(f"stage outputs have {dim} channels; this adapter has {self.dim}.")
        scale_grids((height, width))
        expected = (batch, 3, 16 * height, 16 * width)
        if pixels is None or tuple(pixels.shape) != expected:
            found = None if pixels is None else tuple(pixels.shape)
            raise ValueError(f"pixels are {found}; stage outputs {shapes[0]} need {expected}.")
        return height, width


def reset_adapter(root: nn.Module) -> None:
    """Gives every layer below ``root`` the initial values that ViT-Adapter starts from."""
    for module in root.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in root.modules():
        if isinstance(module, DeformableAttention):
            module.reset_parameters()
