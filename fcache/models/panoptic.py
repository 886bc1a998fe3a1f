"""Predictions of queries turned into maps: panoptic and semantic, of images and of clips.

The rules are those of Mask2Former's image inference and of DVIS++'s VPS and VSS inference. The two
differ in one place: an image's masks are brought to the output's size as logits, a clip's as
probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]

MIN_SCORE = 0.8  # of a query's class; lower ones take no part
MIN_OVERLAP = 0.8  # part of its own mask that a query must win from the others
MIN_PROBABILITY = 0.5  # of a pixel
QUERIES_AT_ONCE = 16  # whose masks are held at full size while a semantic map is summed up


@dataclass(frozen=True, slots=True)
class Canvas:
    """How mask logits become a map: sizes as (height, width) in pixels."""

    padded: Size  # what the network saw
    valid: Size  # the part of it that is not padding
    output: Size | None = None  # of the map; the valid part's by default
    resized: Literal["logits", "probabilities"] = "logits"

    def probabilities(
        self,
        mask_logits: Tensor,  # [Q, T, h, w]
    ) -> Tensor:  # [Q, T, height, width] float32, 0..1
        """Returns the masks at the output's size."""
        masks = _resize(mask_logits.float(), self.padded)[..., : self.valid[0], : self.valid[1]]
        if self.resized == "probabilities":
            return _resize(masks.sigmoid(), self.output or self.valid)
        return _resize(masks, self.output or self.valid).sigmoid()


@dataclass(frozen=True, slots=True)
class PredictedSegment:
    """One segment of a map; its id in a clip is a track."""

    id: int  # from 1
    category: int  # class index
    is_thing: bool
    query: int  # the first one, where several of a stuff category are joined


@dataclass(frozen=True, slots=True)
class PanopticMap:
    """Segment ids of an image or a clip, 0 where there is no segment."""

    ids: Tensor  # [T, height, width] int32
    segments: tuple[PredictedSegment, ...]


def class_probabilities(
    class_logits: Tensor,  # [Q, K + 1]
    other: Tensor | None = None,  # [Q, K + 1] logits of a second head for the same queries
) -> Tensor:  # [Q, K + 1] float32
    """Returns the softmax; of two heads the larger value of each category.

    "No object" is the first head's. The result for two heads does not sum to one; the official
    offline inference leaves it so.
    """
    first = class_logits.float().softmax(-1)
    if other is None:
        return first
    second = other.float().softmax(-1)
    return torch.cat([torch.maximum(first, second)[:, :-1], first[:, -1:]], 1)


@dataclass(frozen=True, slots=True)
class KeptQueries:
    """The queries that compete for pixels, N of them in their order."""

    queries: Tensor  # [N]
    scores: Tensor  # [N]
    labels: Tensor  # [N]


@dataclass(frozen=True, slots=True)
class Claims:
    """Who takes which pixel of some frames; counts of several windows of a video add up."""

    owner: Tensor  # [T, height, width] int64, position among the kept from 1; 0 for nobody
    counts: Tensor  # [3, N] int64: pixels won, those of them inside the own mask, the own mask


def kept_queries(
    classes: Tensor,  # [Q, K + 1] probabilities
    *,
    min_score: float = MIN_SCORE,
) -> KeptQueries:
    """Returns the queries whose best class is a category with more than ``min_score``."""
    scores, labels = classes.max(-1)
    kept = ((labels != classes.shape[1] - 1) & (scores > min_score)).nonzero()[:, 0]
    return KeptQueries(kept, scores[kept], labels[kept])


@torch.no_grad()
def claims(
    kept: KeptQueries,
    mask_logits: Tensor,  # [N, T, h, w] of the kept
    canvas: Canvas,
) -> Claims:
    """Returns the winner of each pixel: of the largest class score times mask probability."""
    if not len(kept.queries):
        size = canvas.output or canvas.valid
        nobody = mask_logits.new_zeros((mask_logits.shape[1], *size), dtype=torch.int64)
        return Claims(nobody, nobody.new_zeros(3, 0))
    masks = canvas.probabilities(mask_logits)
    winner = (kept.scores[:, None, None, None] * masks).argmax(0)  # [T, height, width]
    sure = masks.gather(0, winner[None])[0] >= MIN_PROBABILITY
    own = (masks >= MIN_PROBABILITY).flatten(1).sum(1)
    won = [_count(pixels, len(masks)) for pixels in (winner, winner[sure])]
    return Claims((winner + 1) * sure, torch.stack([*won, own]))


def numbered(
    kept: KeptQueries,
    counts: Tensor,  # [3, N] of the whole clip
    is_thing: Sequence[bool],  # [K]
    *,
    min_overlap: float = MIN_OVERLAP,
) -> tuple[Tensor, tuple[PredictedSegment, ...]]:  # [N + 1] int32 on the device of ``counts``
    """Returns the segment id of each owner, 0 for one that is left out, and the segments.

    A query is left out if it wins less than ``min_overlap`` of its own mask. Stuff of one category
    is one segment.
    """
    won, sure, own = counts
    passes = (sure > 0) & (won / own.clamp(min=1) >= min_overlap)
    ids, segments = _number(kept.queries, kept.labels, passes, is_thing)
    return torch.tensor([0, *ids], dtype=torch.int32, device=counts.device), tuple(segments)


@torch.no_grad()
def panoptic_map(
    classes: Tensor,  # [Q, K + 1] probabilities
    mask_logits: Tensor,  # [Q, T, h, w]
    canvas: Canvas,
    is_thing: Sequence[bool],  # [K]
    *,
    min_score: float = MIN_SCORE,
    min_overlap: float = MIN_OVERLAP,
) -> PanopticMap:
    """Returns segments that do not overlap, in the order of their queries.

    Overlap is counted over the whole clip. A video that does not fit into memory at once is done in
    windows: ``kept_queries``, ``claims`` of each, and ``numbered`` of the sum of their counts.
    """
    kept = kept_queries(classes, min_score=min_score)
    made = claims(kept, mask_logits[kept.queries], canvas)
    ids, segments = numbered(kept, made.counts, is_thing, min_overlap=min_overlap)
    return PanopticMap(ids[made.owner], segments)


@torch.no_grad()
def semantic_map(
    classes: Tensor,  # [Q, K + 1] probabilities
    mask_logits: Tensor,  # [Q, T, h, w]
    canvas: Canvas,
) -> Tensor:  # [T, height, width] int64
    """Returns the category of each pixel: that of the largest sum of class times mask over queries.

    All queries count; none of the pixels is void.
    """
    total: Tensor | None = None
    for first in range(0, len(classes), QUERIES_AT_ONCE):
        some = slice(first, first + QUERIES_AT_ONCE)
        masks = canvas.probabilities(mask_logits[some])
        part = torch.einsum("qc,qthw->cthw", classes[some, :-1], masks)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.argmax(0)


def _number(
    queries: Tensor, labels: Tensor, passes: Tensor, is_thing: Sequence[bool]
) -> tuple[list[int], list[PredictedSegment]]:
    """Returns the id of each kept query, 0 for one that is left out, and the segments."""
    ids: list[int] = []
    segments: list[PredictedSegment] = []
    of_stuff: dict[int, int] = {}
    rows = zip(queries.tolist(), labels.tolist(), passes.tolist(), strict=True)
    for query, label, passed in rows:
        if not passed or label in of_stuff:
            ids.append(of_stuff[label] if passed else 0)
            continue
        ids.append(len(segments) + 1)
        segments.append(PredictedSegment(ids[-1], label, is_thing[label], query))
        if not is_thing[label]:
            of_stuff[label] = ids[-1]
    return ids, segments


def _count(values: Tensor, length: int) -> Tensor:  # any shape -> [length]
    return torch.bincount(values.flatten(), minlength=length)


def _resize(masks: Tensor, size: Size) -> Tensor:
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)
