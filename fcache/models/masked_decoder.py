"""Mask2Former's transformer decoder: queries that attend inside their own predicted masks.

"Masked-attention Mask Transformer for Universal Image Segmentation", section 3.2. Frames are
independent, as in MinVIS and DVIS; the clip-level decoder of Mask2Former-video is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcache.models.layers import Attention, FeedForward, Mlp, fill_c2_xavier
from fcache.models.positions import sine_positions
from fcache.models.predictions import FrameOutput, Prediction

NUM_LEVELS = 3
NUM_HEAD_LAYERS = 3


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and a feed-forward, each normed afterwards."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attention = Attention(dim, num_heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, num_heads)
        self.self_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,  # [B, Q, C]
        positions: Tensor,  # [Q, C] learned, added to queries wherever they ask
        key: Tensor,  # [B, N, C]
        value: Tensor,  # [B, N, C]
        open_mask: Tensor,  # [B, Q, N] bool
    ) -> Tensor:  # [B, Q, C]
        """Returns the updated queries."""
        read = self.cross_attention(queries + positions, key, value, open_mask)
        queries = self.cross_norm(queries + read)
        asking = queries + positions
        queries = self.self_norm(queries + self.self_attention(asking, asking, queries))
        out: Tensor = self.ffn_norm(queries + self.ffn(queries))
        return out


class MaskedDecoder(nn.Module):
    """Classes, masks and embeddings of a fixed set of queries.

    Args:
        num_categories: Classes without "no object", which is predicted last.
        dim: Channels of the queries, of the levels and of the mask features.
        num_queries: 200 for ViT backbones, 100 for ResNet-50.
        num_layers: Layers; one more prediction is made from the raw queries.
        num_heads: Attention heads.
        ffn_dim: Width of the feed-forwards.
        reid: Adds the ReID head of DVIS++ and CTVIS.
    """

    def __init__(
        self,
        num_categories: int,
        dim: int = 256,
        *,
        num_queries: int = 200,
        num_layers: int = 9,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        reid: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_categories = num_categories
        self.query_features = nn.Embedding(num_queries, dim)
        self.query_positions = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_categories + 1)
        self.mask_head = Mlp(dim, dim, dim, NUM_HEAD_LAYERS)
        self.reid_head = Mlp(dim, dim, dim, NUM_HEAD_LAYERS) if reid else None
        if self.reid_head is not None:
            for layer in self.reid_head.layers:
                fill_c2_xavier(layer)

    def forward(
        self,
        levels: Sequence[Tensor],  # [B, C, H, W], [B, C, 2H, 2W], [B, C, 4H, 4W]
        mask_features: Tensor,  # [B, C, 8H, 8W]
        *,
        keep_aux: bool = True,
    ) -> FrameOutput:
        """Returns the prediction of every layer and the final queries.

        Layer i attends to level ``i mod 3``, coarsest first. Without ``keep_aux`` only the last
        prediction is kept, which saves the memory of the others where there is no loss.
        """
        memories = [self._memory(index, level) for index, level in enumerate(levels)]
        shapes = [tuple(level.shape[-2:]) for level in levels]
        queries = self.query_features.weight.expand(mask_features.shape[0], -1, -1)
        positions = self.query_positions.weight
        prediction = self._predict(queries, mask_features)
        aux: list[Prediction] = []
        for index, layer in enumerate(self.layers):
            level = index % NUM_LEVELS
            open_mask = attention_mask(prediction.mask_logits, shapes[level])
            if keep_aux:
                aux.append(prediction)
            queries = layer(queries, positions, *memories[level], open_mask)
            prediction = self._predict(queries, mask_features)
        normed = self.norm(queries)
        return FrameOutput(
            final=prediction,
            aux=tuple(aux),
            queries=normed,
            raw_queries=queries,
            reid=None if self.reid_head is None else self.reid_head(normed),
            mask_features=mask_features,
        )

    def _memory(self, index: int, level: Tensor) -> tuple[Tensor, Tensor]:
        height, width = level.shape[-2:]
        value = level.flatten(2).transpose(1, 2) + self.level_embed.weight[index]
        positions = sine_positions(height, width, self.dim, level.device)
        return value + positions.flatten(2).transpose(1, 2), value

    def _predict(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        normed = self.norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_head(normed), mask_features)
        return Prediction(self.class_head(normed), masks)


def attention_mask(
    mask_logits: Tensor,  # [B, Q, h, w]
    shape: tuple[int, ...],  # (H, W) of the level
) -> Tensor:  # [B, Q, H * W] bool
    """Returns where a query may attend: inside its predicted mask, or everywhere if it is empty."""
    resized = F.interpolate(
        mask_logits.detach().float(), shape, mode="bilinear", align_corners=False
    )
    inside = resized.flatten(2).sigmoid() >= 0.5
    return inside | ~inside.any(-1, keepdim=True)
