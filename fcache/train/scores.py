"""Image PQ and mIoU of validation frames, on the canvas that the network saw.

They say how training goes, not what a paper would quote: labels are at the canvas's size, crowds
are void, and PQ is of single frames. ``fcache eval`` scores predictions as the official scripts do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fcache.eval.matching import CLEAN, match
from fcache.eval.quality import MatchCounts, panoptic_quality
from fcache.eval.semantic import ConfusionMatrix
from fcache.eval.tables import Tabulator
from fcache.manifest import Category
from fcache.models import Targets
from fcache.models.panoptic import PanopticMap
from fcache.train.distributed import World

TargetKind = Literal["panoptic", "semantic"]
IGNORE = 255
BEST_BY: Mapping[str, str] = {"panoptic": "pq", "semantic": "miou"}  # what tells the best


class ImageScores:
    """Counts of validation frames.

    Args:
        categories: In model order.
        kind: Which labels; PQ is of panoptic ones alone.
    """

    def __init__(self, categories: Sequence[Category], kind: TargetKind) -> None:
        self.categories = tuple(categories)
        self.kind = kind
        self.wants_segments = kind == "panoptic"
        self.matches = MatchCounts.zeros(len(self.categories))
        self.pixels = ConfusionMatrix(len(self.categories), IGNORE)
        self.num_frames = 0
        self._tabulator = Tabulator(self.categories)

    def add(
        self,
        name: str,
        truth: Targets,
        semantic: torch.Tensor,  # [height, width] class indices
        panoptic: PanopticMap | None,  # of one frame, ids [1, height, width]
    ) -> None:
        """Counts a frame; masks and maps are of its valid part."""
        self.num_frames += 1
        owner = _owner(truth)
        classes = np.append(truth.classes.cpu().numpy(), IGNORE)
        self.pixels.add(classes[owner - 1], semantic.cpu().numpy())
        if panoptic is None:
            return
        pair = _Pair(
            video_id=name,
            frame_name=name,
            truth_ids=owner,
            prediction_ids=panoptic.ids[0].cpu().numpy(),
            truth_segments=self._listed(owner, classes[:-1]),
            prediction_segments=_Listed.of(
                np.array([segment.id for segment in panoptic.segments], np.int64),
                self._category_ids([segment.category for segment in panoptic.segments]),
            ),
        )
        self.matches += match([self._tabulator.table(pair)], CLEAN, len(self.categories))

    def joined(self, world: World) -> ImageScores:
        """Returns the counts of all ranks together."""
        total = ImageScores(self.categories, self.kind)
        counts = np.stack([self.matches.tp, self.matches.fp, self.matches.fn, self.pixels.missed])
        told = np.concatenate([counts.ravel(), self.pixels.counts.ravel(), [self.num_frames]])
        whole = world.sum(torch.from_numpy(told)).cpu().numpy()
        rows, matrix, total.num_frames = (
            whole[: counts.size].reshape(counts.shape),
            whole[counts.size : -1],
            int(whole[-1]),
        )
        iou = world.sum(torch.from_numpy(self.matches.iou)).cpu().numpy()
        total.matches += MatchCounts(iou, rows[0], rows[1], rows[2])
        total.pixels.missed += rows[3]
        total.pixels.counts += matrix.reshape(total.pixels.counts.shape)
        return total

    def metrics(self) -> dict[str, float]:
        """Returns ``miou`` and, of panoptic labels, ``pq``, ``sq``, ``rq``; 0..1 or NaN."""
        found = {"miou": self.pixels.miou}
        if self.kind == "panoptic":
            is_thing = np.array([category.isthing for category in self.categories])
            quality = panoptic_quality(self.matches, is_thing)
            found |= {
                "pq": quality.all.pq,
                "sq": quality.all.sq,
                "rq": quality.all.rq,
                "pq_things": quality.things.pq,
                "pq_stuff": quality.stuff.pq,
            }
        return found

    def _listed(self, owner: NDArray[np.int64], classes: NDArray[np.int64]) -> _Listed:
        present = np.unique(owner)
        ids = present[present > 0]
        return _Listed.of(ids, self._category_ids(classes[ids - 1].tolist()))

    def _category_ids(self, classes: Sequence[int]) -> NDArray[np.int64]:
        return np.array([self.categories[index].id for index in classes], np.int64)


@dataclass(frozen=True, slots=True)
class _Listed:
    ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.int64]

    @classmethod
    def of(cls, ids: NDArray[np.int64], category_ids: NDArray[np.int64]) -> _Listed:
        return cls(ids, category_ids, np.zeros(len(ids), np.bool_), np.full(len(ids), -1))


@dataclass(frozen=True, slots=True)
class _Pair:
    video_id: str
    frame_name: str
    truth_ids: NDArray[np.int64]
    prediction_ids: NDArray[np.int32]
    truth_segments: _Listed
    prediction_segments: _Listed


def _owner(truth: Targets) -> NDArray[np.int64]:  # [height, width]
    """Returns which segment a pixel belongs to, from 1; 0 for none."""
    owner = np.zeros(tuple(truth.masks.shape[1:]), np.int64)
    for number, mask in enumerate(truth.masks.cpu().numpy(), 1):
        owner[mask.astype(bool, copy=False)] = number
    return owner
