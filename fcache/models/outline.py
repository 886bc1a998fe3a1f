"""What a segmenter is, read off the shapes of its tensors.

A checkpoint says nowhere how many heads, queries or categories its model has; shapes do, except
for the heads of the masked decoder, which keep 32 channels each in every official model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fcache.errors import WeightsError
from fcache.models.adapter import ViTAdapter
from fcache.models.masked_decoder import NUM_LEVELS, MaskedDecoder
from fcache.models.official import SEGMENTER_KEYS, Shape
from fcache.models.pixel_decoder import PixelDecoder
from fcache.models.pyramid import PyramidAdapter
from fcache.models.segmenter import Segmenter

NUM_POINTS = 4  # of deformable attention, per head and level
DECODER_HEAD_CHANNELS = 32
CLASS_WEIGHT = "criterion.class_weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The numbers that build a segmenter.

    Attributes:
        adapter: ``vit``: ViT-Adapter; ``none``: a pyramid backbone's outputs are the pyramid.
        channels: Of the pyramid's four maps, finest first.
        num_heads: Of the extractors; 0 without them.
        prior_width: Channels of the spatial prior's stem; 0 without it.
        extractor_ffn_dim: Width of the extractors' MLP; 0 without them.
        dim: Channels of both decoders.
        num_encoder_layers: Layers of the pixel decoder.
        num_encoder_heads: Heads of its deformable attention.
        encoder_ffn_dim: Width of its feed-forwards.
        num_layers: Layers of the masked decoder.
        ffn_dim: Width of its feed-forwards.
        num_queries: Queries.
        num_categories: Classes without "no object".
        reid: Whether there is a ReID head.
        class_weight: Whether the criterion's class weights are there.
    """

    adapter: Literal["vit", "none"]
    channels: tuple[int, ...]
    num_heads: int
    prior_width: int
    extractor_ffn_dim: int
    dim: int
    num_encoder_layers: int
    num_encoder_heads: int
    encoder_ffn_dim: int
    num_layers: int
    ffn_dim: int
    num_queries: int
    num_categories: int
    reid: bool
    class_weight: bool

    def build(self) -> Segmenter:
        """Returns a segmenter of these numbers that holds no memory.

        Raises:
            WeightsError: the numbers do not fit together.
        """
        try:
            with torch.device("meta"):
                adapter = self._adapter()
                pixel_decoder = PixelDecoder(
                    adapter.channels,
                    self.dim,
                    num_heads=self.num_encoder_heads,
                    num_layers=self.num_encoder_layers,
                    ffn_dim=self.encoder_ffn_dim,
                )
                masked_decoder = MaskedDecoder(
                    self.num_categories,
                    self.dim,
                    num_queries=self.num_queries,
                    num_layers=self.num_layers,
                    num_heads=self.dim // DECODER_HEAD_CHANNELS,
                    ffn_dim=self.ffn_dim,
                    reid=self.reid,
                )
                return Segmenter(adapter, pixel_decoder, masked_decoder)
        except (ValueError, ZeroDivisionError) as error:
            raise WeightsError(
                f"the shapes are of no segmenter ({error}); expected Mask2Former on ViT-Adapter "
                "or on a pyramid backbone."
            ) from error

    def shapes(self) -> dict[str, Shape]:
        """Returns the shape of every tensor such a checkpoint holds, under our names."""
        state = self.build().state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return shapes | ({CLASS_WEIGHT: (self.num_categories + 1,)} if self.class_weight else {})

    def _adapter(self) -> ViTAdapter | PyramidAdapter:
        if self.adapter == "none":
            return PyramidAdapter(self.channels)
        width = self.channels[0]
        # Half a channel more, so that rounding down gives the width that was read.
        ratio = (self.extractor_ffn_dim + 0.5) / width
        return ViTAdapter(width, self.num_heads, prior_width=self.prior_width, ffn_ratio=ratio)


def outline_of(shapes: Mapping[str, Shape]) -> Outline:
    """Returns the outline of a segmenter from its tensors' shapes, under our names.

    Raises:
        WeightsError: a tensor that shows a number lacks, or is no matrix; it is named as official
            checkpoints name it.
    """

    def size(name: str, axis: int = 0) -> int:
        if len(shapes.get(name, ())) <= axis:
            official = SEGMENTER_KEYS.official(name) or name
            found = f"is {list(shapes[name])}" if name in shapes else "is not there"
            raise WeightsError(
                f"'{official}' {found}, from which the segmenter's size is read; expected a whole "
                "checkpoint of Mask2Former, MinVIS, CTVIS, DVIS or DVIS++."
            )
        return shapes[name][axis]

    def count(prefix: str) -> int:
        inside = (name.removeprefix(prefix) for name in shapes if name.startswith(prefix))
        return len({name.partition(".")[0] for name in inside})

    has_adapter = any(name.startswith("adapter.") for name in shapes)
    coarser = [size(f"pixel_decoder.projections.{index}.conv.weight", 1) for index in (2, 1, 0)]
    extractor = "adapter.extractors.0."
    return Outline(
        adapter="vit" if has_adapter else "none",
        channels=(size("pixel_decoder.lateral.conv.weight", 1), *coarser),
        num_heads=size(f"{extractor}attention.logits.weight") // NUM_POINTS if has_adapter else 0,
        prior_width=size("adapter.spatial_prior.stem.0.conv.weight") if has_adapter else 0,
        extractor_ffn_dim=size(f"{extractor}ffn.linear1.weight") if has_adapter else 0,
        dim=size("pixel_decoder.mask_features.weight"),
        num_encoder_layers=count("pixel_decoder.layers."),
        num_encoder_heads=size("pixel_decoder.layers.0.attention.logits.weight")
        // (NUM_LEVELS * NUM_POINTS),
        encoder_ffn_dim=size("pixel_decoder.layers.0.ffn.linear1.weight"),
        num_layers=count("masked_decoder.layers."),
        ffn_dim=size("masked_decoder.layers.0.ffn.linear1.weight"),
        num_queries=size("masked_decoder.query_features.weight"),
        num_categories=size("masked_decoder.class_head.weight") - 1,
        reid=any(name.startswith("masked_decoder.reid_head.") for name in shapes),
        class_weight=CLASS_WEIGHT in shapes,
    )
