"""A recipe's numbers turned into modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fcache.config import SegmenterConfig
from fcache.errors import ConfigError
from fcache.manifest import Category
from fcache.models import (
    ComerAdapter,
    MaskedDecoder,
    PixelDecoder,
    PyramidAdapter,
    Segmenter,
    ViTAdapter,
)
from fcache.store.layout import ViewLayout
from fcache.train.segmenter import SegmenterStage
from fcache.train.synced_norm import SyncedBatchNorm2d

HEAD_CHANNELS = 64  # of an extractor: 16 heads for ViT-L, 24 for ViT-g
DECODER_HEAD_CHANNELS = 32
PYRAMID_STRIDES = (4, 8, 16, 32)


def build_segmenter(config: SegmenterConfig, layout: ViewLayout, num_categories: int) -> Segmenter:
    """Returns a segmenter for a view's stage outputs; the seed alone decides its first values.

    Under ``torch.device("meta")`` it holds no memory.

    Raises:
        ConfigError: the adapter is not for this kind of backbone.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        adapter = build_adapter(config, layout)
        num_heads = config.dim // DECODER_HEAD_CHANNELS
        return Segmenter(
            adapter,
            PixelDecoder(
                adapter.channels,
                config.dim,
                num_heads=num_heads,
                num_layers=config.num_encoder_layers,
                ffn_dim=config.encoder_ffn_dim,
            ),
            MaskedDecoder(
                num_categories,
                config.dim,
                num_queries=config.num_queries,
                num_layers=config.num_layers,
                num_heads=num_heads,
                ffn_dim=config.ffn_dim,
            ),
        )


def build_adapter(config: SegmenterConfig, layout: ViewLayout) -> ViTAdapter | PyramidAdapter:
    """Returns what makes the pyramid.

    Raises:
        ConfigError: the adapter is not for this kind of backbone.
    """
    if config.adapter == "none":
        if layout.plain or layout.strides != PYRAMID_STRIDES:
            raise ConfigError(
                f"adapter=none hands stage outputs at strides 4, 8, 16, 32 on; this view has "
                f"strides {', '.join(map(str, layout.strides))}. Expected adapter=vit or "
                "adapter=comer."
            )
        return PyramidAdapter(layout.channels)
    if not layout.plain:
        raise ConfigError(
            f"adapter={config.adapter} reads a plain ViT; this view holds a pyramid at strides "
            f"{', '.join(map(str, layout.strides))}. Expected adapter=none."
        )
    dim = layout.channels[0]
    num_heads = max(1, dim // HEAD_CHANNELS)
    if dim % num_heads:
        raise ConfigError(
            f"stage outputs have {dim} channels, which heads of {HEAD_CHANNELS} do not fill."
        )
    if config.adapter == "vit":
        return ViTAdapter(
            dim,
            num_heads,
            prior_width=config.prior_width,
            norm=SyncedBatchNorm2d,
            checkpointing=config.checkpointing,
        )
    return ComerAdapter(
        dim,
        num_heads,
        mrfp_ratio=config.mrfp_ratio,
        residual=config.mrfp_residual,
        prior_width=config.prior_width,
        norm=SyncedBatchNorm2d,
        checkpointing=config.checkpointing,
    )


def segmenter_stage(
    config: SegmenterConfig, module: Segmenter, categories: Sequence[Category]
) -> SegmenterStage:
    """Returns the stage that trains a segmenter."""
    return SegmenterStage(
        module,
        [category.isthing for category in categories],
        seed=config.seed,
        lr=config.lr,
        weight_decay=config.weight_decay,
        adapter_lr_factor=config.adapter_lr_factor,
        backbone_lr_factor=config.backbone.lr_factor,
        num_points=config.num_points,
    )


def num_parameters(module: nn.Module) -> int:
    """Returns how many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
