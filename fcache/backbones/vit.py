"""Plain vision transformers: four taps on the residual stream, at any canvas size.

Modules and their arithmetic are timm's; the order of embedding, positions and taps is spelt out
here because timm's resampling of positions and patches is not DINOv2's. The final norm and the
head are dropped: a stage output is the raw residual stream after a block, patch tokens only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard, cast

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fcache.backbones.description import (
    JSON,
    Blueprint,
    Description,
    StageSpec,
    check_tag,
    float_shapes,
    normalisation,
    split_name,
)
from fcache.backbones.packed import Attend, packed_block
from fcache.backbones.resample import default_rule, resample_positions
from fcache.config import BackboneSettings, PositionRule
from fcache.errors import ConfigError

PATCHES = (14, 16)


def outline(model: str) -> nn.Module:
    """Returns a timm model without weights or memory (on the ``meta`` device).

    Raises:
        ConfigError: timm has no model or no pretrained tag of that name.
    """
    split_name(model)
    try:
        with torch.device("meta"):
            return timm.create_model(model, pretrained=False)
    except RuntimeError as error:
        if "pretrained tag" not in str(error):
            raise
        raise check_tag(model, error) from None


def is_plain(model: nn.Module) -> TypeGuard[VisionTransformer]:
    """Says whether a timm model is a plain ViT: one class, one convolution as patch embedding."""
    return type(model) is VisionTransformer and type(model.patch_embed) is PatchEmbed


def vit_blueprint(settings: BackboneSettings) -> Blueprint:
    """Returns what a plain ViT is under these settings.

    Raises:
        ConfigError: ``blocks=`` does not fit its depth, or its patch is neither 14 nor 16 pixels.
    """
    model = outline(settings.model)
    assert is_plain(model)
    everything = float_shapes(model.state_dict())
    name = split_name(settings.model)
    blocks = _blocks(settings, len(model.blocks))
    native = _native_patch(model, name)
    facts = _architecture(model, native)
    if settings.pos is not None and model.pos_embed is None:
        raise ConfigError(
            f"pos='{settings.pos}' has no meaning for model='{name}': it has no position embedding."
        )
    mean, std = normalisation(model)
    trim(model, blocks)
    shapes = float_shapes(model.state_dict())
    description = Description(
        kind="vit",
        model=name,
        stages=tuple(StageSpec(int(model.embed_dim), settings.patch) for _ in blocks),
        blocks=blocks,
        patch=settings.patch,
        pos=(settings.pos or default_rule(name)) if model.pos_embed is not None else None,
        mean=mean,
        std=std,
        architecture=facts,
    )
    prefix = 0 if model.no_embed_class else int(model.num_prefix_tokens)
    pos_prefix = prefix if model.pos_embed is not None else None
    return Blueprint(description, shapes, frozenset(everything) - frozenset(shapes), pos_prefix)


def _blocks(settings: BackboneSettings, depth: int) -> tuple[int, ...]:
    quarters = tuple(math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4))
    example = ",".join(map(str, quarters))
    if settings.blocks is None:
        if depth % 4:
            raise ConfigError(
                f"model='{settings.model}' has {depth} blocks, which do not divide into quarters; "
                f"give the four to keep, for example blocks=[{example}]."
            )
        return quarters
    blocks = settings.blocks
    if list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= depth:
        raise ConfigError(
            f"blocks={list(blocks)} does not fit model='{settings.model}'; expected four ascending "
            f"indexes from 0 to {depth - 1}, for example [{example}]."
        )
    return blocks


def _native_patch(model: VisionTransformer, name: str) -> int:
    height, width = model.patch_embed.patch_size
    if height != width or height not in PATCHES:
        raise ConfigError(
            f"model='{name}' has patches of {height}x{width} pixels; expected 14 or 16, the "
            f"kernels that patch= resizes into each other."
        )
    return int(height)


def _architecture(model: VisionTransformer, native: int) -> dict[str, JSON]:
    block = model.blocks[0]
    mlp: Any = getattr(block, "mlp", None)
    attention: Any = getattr(block, "attn", None)
    norm: Any = getattr(block, "norm1", None)
    return {
        "family": "vit",
        "embed_dim": int(model.embed_dim),
        "depth": len(model.blocks),
        "block": type(block).__name__,
        "num_heads": int(getattr(attention, "num_heads", 0)),
        "attention": type(attention).__name__,
        "qk_norm": not isinstance(getattr(attention, "q_norm", nn.Identity()), nn.Identity),
        "mlp": type(mlp).__name__,
        "activation": type(getattr(mlp, "act", None)).__name__,
        "norm": type(norm).__name__,
        "norm_eps": float(getattr(norm, "eps", None) or 0.0),
        "layer_scale": not isinstance(getattr(block, "ls1", nn.Identity()), nn.Identity),
        "class_token": bool(model.has_class_token),
        "num_registers": int(model.num_reg_tokens),
        "class_position": not model.no_embed_class,
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "trained_patch": native,
    }


def trim(model: VisionTransformer, blocks: tuple[int, ...]) -> None:
    """Drops what no stage output depends on: later blocks, final norms, pooling and head."""
    model.blocks = model.blocks[: blocks[-1] + 1]
    for unused in ("norm", "fc_norm", "attn_pool", "head"):
        setattr(model, unused, None)


class VitTrunk(nn.Module):
    """A trimmed timm ViT that returns patch tokens after four of its blocks."""

    def __init__(self, vit: VisionTransformer, description: Description) -> None:
        super().__init__()
        assert description.blocks is not None
        self.vit = vit
        self.taps = description.blocks
        self.patch = description.patch
        self.rule = cast("PositionRule", description.pos)
        self._positions: dict[tuple[int, int], Tensor] = {}
        # The kernel that is placed here later has this size; timm's convolution keeps it apart.
        vit.patch_embed.proj.kernel_size = (self.patch, self.patch)
        vit.patch_embed.proj.stride = (self.patch, self.patch)

    @property
    def multiple(self) -> int:
        """Both sides of a canvas are multiples of this, in pixels."""
        return self.patch

    def num_tokens(self, pixels: Tensor) -> int:
        """Tokens of one frame of this size, class token and registers included."""
        rows, columns = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        return int(self.vit.num_prefix_tokens) + rows * columns

    def forward(
        self,
        pixels: Tensor,  # [B, 3, height, width] normalised, zero outside the valid area
    ) -> list[Tensor]:  # 4 x [B, H, W, C]
        """Returns the residual stream after each tapped block, prefix tokens removed."""
        rows, columns = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        tokens = self.embed(pixels, (rows, columns))
        num_prefix = int(self.vit.num_prefix_tokens)
        outputs = []
        for index, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            if index in self.taps:
                outputs.append(tokens[:, num_prefix:].unflatten(1, (rows, columns)))
        return outputs

    def forward_packed(
        self,
        frames: Sequence[Tensor],  # F of [1, 3, height, width]
        attend: Attend,
    ) -> list[list[Tensor]]:  # F x 4 x [H, W, C]
        """Returns what ``forward`` returns for each frame, computed as one sequence."""
        grids = [(f.shape[-2] // self.patch, f.shape[-1] // self.patch) for f in frames]
        embedded = [self.embed(f, grid) for f, grid in zip(frames, grids, strict=True)]
        lengths = [tokens.shape[1] for tokens in embedded]
        tokens = torch.cat(embedded, 1)
        num_prefix = int(self.vit.num_prefix_tokens)
        outputs: list[list[Tensor]] = [[] for _ in frames]
        for index, block in enumerate(self.vit.blocks):
            tokens = packed_block(cast("Block", block), tokens, attend)
            if index in self.taps:
                parts = torch.split(tokens[0], lengths)
                for stages, part, grid in zip(outputs, parts, grids, strict=True):
                    stages.append(part[num_prefix:].reshape(*grid, -1))
        return outputs

    def embed(
        self,
        pixels: Tensor,  # [B, 3, height, width]
        grid: tuple[int, int],
    ) -> Tensor:  # [B, prefix + H * W, C] float32
        """Returns the input tokens: class token, registers, then patches in row-major order."""
        vit = self.vit
        patches = vit.patch_embed.norm(vit.patch_embed.proj(pixels).flatten(2).transpose(1, 2))
        patches = patches.float()
        prefix: list[Tensor] = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        before = torch.cat(prefix, 1) if prefix else patches.new_zeros(1, 0, patches.shape[-1])
        if vit.pos_embed is not None:
            num_embedded = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
            before = before + vit.pos_embed[:, :num_embedded] if num_embedded else before
            patches = patches + self._grid_positions(grid, vit.pos_embed[:, num_embedded:])
        tokens = torch.cat([before.expand(patches.shape[0], -1, -1), patches], 1)
        return cast("Tensor", vit.norm_pre(tokens))

    def _grid_positions(self, grid: tuple[int, int], trained: Tensor) -> Tensor:
        if grid not in self._positions:
            if len(self._positions) >= 8:
                self._positions.clear()
            self._positions[grid] = resample_positions(trained, grid, self.rule)
        return self._positions[grid]

    def compile_for_cuda(self) -> None:
        """Compiles each block, once per canvas size."""
        for block in self.vit.blocks:
            block.compile(dynamic=False)
