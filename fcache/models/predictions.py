"""What a mask decoder predicts: one prediction per layer, frames independent of each other.

A batch of clips goes through the segmenter as one batch of frames; ``per_clip`` gives the frames
of each clip their own dimension afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prediction:
    """Classes and masks of every query in every frame."""

    class_logits: Tensor  # [B, Q, K + 1], the last is "no object"
    mask_logits: Tensor  # [B, Q, h, w] at stride 4

    def per_clip(self, num_frames: int) -> ClipPrediction:
        """Returns the same values with the frames of a clip in their own dimension."""
        return ClipPrediction(
            self.class_logits.unflatten(0, (-1, num_frames)),
            self.mask_logits.unflatten(0, (-1, num_frames)).transpose(1, 2),
        )


@dataclass(frozen=True, slots=True)
class ClipPrediction:
    """Classes and masks of every query in every frame of every clip."""

    class_logits: Tensor  # [B, T, Q, K + 1]
    mask_logits: Tensor  # [B, Q, T, h, w]


@dataclass(frozen=True, slots=True)
class FrameOutput:
    """Everything a segmenter tells about a batch of frames."""

    final: Prediction
    aux: tuple[Prediction, ...]  # of the raw queries and of every layer but the last
    queries: Tensor  # [B, Q, C] after the decoder's norm
    raw_queries: Tensor  # [B, Q, C] before it
    reid: Tensor | None  # [B, Q, R] embeddings for association, DVIS++ and CTVIS only
    mask_features: Tensor  # [B, C, h, w]

    @property
    def layers(self) -> tuple[Prediction, ...]:
        """The predictions a loss is taken of: the final one, then the auxiliary ones."""
        return (self.final, *self.aux)

    def per_clip(self, num_frames: int) -> ClipOutput:
        """Returns what trackers read, for ``B / num_frames`` clips.

        Raises:
            ValueError: the batch is not a whole number of clips.
        """
        num_images = self.queries.shape[0]
        if num_frames < 1 or num_images % num_frames:
            raise ValueError(f"{num_images} frames are not clips of {num_frames}.")
        shape = (-1, num_frames)
        queries = [t.unflatten(0, shape) for t in (self.queries, self.raw_queries)]
        reid = None if self.reid is None else self.reid.unflatten(0, shape)
        joined = queries if reid is None else [torch.cat([q, reid.to(q)], -1) for q in queries]
        normed, raw = (embeddings.permute(0, 3, 1, 2) for embeddings in joined)
        return ClipOutput(
            final=self.final.per_clip(num_frames),
            embeddings=normed,
            raw_embeddings=raw,
            reid=None if reid is None else reid.permute(0, 3, 1, 2),
            mask_features=self.mask_features.unflatten(0, shape),
        )


@dataclass(frozen=True, slots=True)
class ClipOutput:
    """Per-frame predictions of clips and the query embeddings that link them.

    With a ReID head (DVIS++) the embeddings are queries and ReID side by side; the ReID half is
    the same in both, because it is computed from the normed queries.
    """

    final: ClipPrediction
    embeddings: Tensor  # [B, C or C + R, T, Q] from the normed queries
    raw_embeddings: Tensor  # [B, C or C + R, T, Q] from the queries before the norm
    reid: Tensor | None  # [B, R, T, Q]
    mask_features: Tensor  # [B, T, C, h, w]
