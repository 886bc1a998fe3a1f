"""A video's maps: what one head's outputs become, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcache.models import FrameOutput
from fcache.models.panoptic import (
    Canvas,
    KeptQueries,
    PredictedSegment,
    claims,
    class_probabilities,
    kept_queries,
    numbered,
    panoptic_map,
    semantic_map,
)
from fcache.predict.spool import Spool
from fcache.predict.tracks import Tracks


@dataclass(frozen=True, slots=True, eq=False)
class FrameMap:
    """The map of one frame; one of the two.

    Attributes:
        position: Of the frame in its video.
        ids: [height, width] int32, the segments' ids from 1, 0 for none.
        segments: Of the whole video where frames are linked; else of the frame.
        categories: [height, width] uint8 category indices.
    """

    position: int
    ids: NDArray[np.int32] | None = None
    segments: tuple[PredictedSegment, ...] = ()
    categories: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class MapRules:
    """What decides a map beside the head's outputs.

    Attributes:
        is_thing: Of each category.
        by_segments: Queries compete for pixels: a map of segments.
        by_queries: All queries add up: a map of categories. With both, the categories of segments,
            and where there is none those of all queries.
        min_score: Of a query's category.
        min_overlap: Part of its own mask that a query wins.
    """

    is_thing: tuple[bool, ...]
    by_segments: bool
    by_queries: bool
    min_score: float
    min_overlap: float


class VideoMaps(Protocol):
    """Makes the maps of one video out of the outputs of one head, in two passes."""

    def see(self, window: Sequence[int], output: FrameOutput, canvas: Canvas) -> Iterable[FrameMap]:
        """Takes the next window of the first pass; yields maps that are known at once.

        Args:
            window: Positions of its frames.
            output: Of these frames.
            canvas: How mask logits become maps.
        """

    def place_held(self, canvas: Canvas, device: torch.device) -> None:
        """Places the windows whose masks were held."""

    def place(self, window: int, output: FrameOutput, canvas: Canvas) -> None:
        """Places a window that is predicted again, by its number in the first pass."""

    def finish(self) -> Iterable[FrameMap]:
        """Yields the maps that were not known before the last frame."""

    def close(self) -> None:
        """Gives the disk back."""


class SingleMaps:
    """Panoptic maps of frames that have nothing to do with each other, as of COCO's images."""

    def __init__(self, rules: MapRules) -> None:
        self.rules = rules

    def see(self, window: Sequence[int], output: FrameOutput, canvas: Canvas) -> Iterable[FrameMap]:
        """Yields the map of each frame of a window."""
        rules = self.rules
        for index, position in enumerate(window):
            found = panoptic_map(
                class_probabilities(output.final.class_logits[index]),
                output.final.mask_logits[index][:, None],
                canvas,
                rules.is_thing,
                min_score=rules.min_score,
                min_overlap=rules.min_overlap,
            )
            yield FrameMap(position, found.ids[0].cpu().numpy(), found.segments)

    def place_held(self, canvas: Canvas, device: torch.device) -> None:
        """Finds nothing held."""

    def place(self, window: int, output: FrameOutput, canvas: Canvas) -> None:
        """Is not asked for: there is no second pass."""
        raise AssertionError("single frames are predicted once")

    def finish(self) -> Iterable[FrameMap]:
        """Yields nothing: every map was known at once."""
        return ()

    def close(self) -> None:
        """Holds no disk."""


class LinkedMaps:
    """Maps of a video whose queries are linked from frame to frame.

    Args:
        rules: What decides them.
        num_held: Frames whose masks are held between the passes.
        folder: Where maps wait until the segments of the video are known.
        size: Height and width of the maps.
    """

    def __init__(self, rules: MapRules, num_held: int, folder: Path, size: tuple[int, int]) -> None:
        self.rules = rules
        self.tracks = Tracks(num_held)
        self._classes = torch.zeros(0)
        self._kept: KeptQueries | None = None
        self._counts: Tensor | None = None
        kinds = ["uint16"] * rules.by_segments + ["uint8"] * rules.by_queries
        self._spool = Spool(folder, size, kinds)

    def see(self, window: Sequence[int], output: FrameOutput, canvas: Canvas) -> Iterable[FrameMap]:
        """Takes the next window of the first pass; no map is known yet."""
        self.tracks.see(output)
        return ()

    def place_held(self, canvas: Canvas, device: torch.device) -> None:
        """Places the windows that were held."""
        for masks in self.tracks.held():
            self._place(masks.to(device), canvas)

    def place(self, window: int, output: FrameOutput, canvas: Canvas) -> None:
        """Places a window that is predicted again, by its number in the first pass."""
        self._place(self.tracks.masks(window, output), canvas)

    def finish(self) -> Iterable[FrameMap]:
        """Yields the map of every frame."""
        if not self.rules.by_segments:
            for position, (categories,) in enumerate(self._spool):
                yield FrameMap(position, categories=categories.astype(np.uint8, copy=False))
            return
        assert self._kept is not None
        assert self._counts is not None
        table, segments = numbered(
            self._kept, self._counts, self.rules.is_thing, min_overlap=self.rules.min_overlap
        )
        ids = table.cpu().numpy()
        category_of = np.array([0, *(segment.category for segment in segments)], np.uint8)
        for position, (owner, *semantic) in enumerate(self._spool):
            found = ids[owner]
            if semantic:
                merged = np.where(found > 0, category_of[found], semantic[0].astype(np.uint8))
                yield FrameMap(position, categories=merged)
            else:
                yield FrameMap(position, found, segments)

    def close(self) -> None:
        """Gives the disk back."""
        self._spool.close()

    def _place(self, masks: Tensor, canvas: Canvas) -> None:  # [Q, T, h, w]
        if self._kept is None:
            self._classes = self.tracks.classes().to(masks.device)
            self._kept = kept_queries(self._classes, min_score=self.rules.min_score)
        for index in range(masks.shape[1]):
            frame = masks[:, index : index + 1]
            maps: list[NDArray[np.generic]] = []
            if self.rules.by_segments:
                made = claims(self._kept, frame[self._kept.queries], canvas)
                self._counts = made.counts if self._counts is None else self._counts + made.counts
                maps.append(made.owner[0].cpu().numpy().astype(np.uint16))
            if self.rules.by_queries:
                found = semantic_map(self._classes, frame, canvas)[0]
                maps.append(found.cpu().numpy().astype(np.uint8))
            self._spool.add(maps)
