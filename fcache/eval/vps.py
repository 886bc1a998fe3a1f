"""Video panoptic segmentation: VPQ_k and STQ from one reading of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcache.eval.quirks import Definition, Quirk
from fcache.eval.stq import SegmentationTrackingQuality, StqResult
from fcache.eval.tables import PanopticPair, Tabulator
from fcache.eval.vpq import (
    LEADERBOARD_WINDOWS,
    ImagePanopticQuality,
    PqResult,
    VideoPanopticQuality,
    VpqResult,
)
from fcache.manifest import Category


@dataclass(frozen=True, slots=True)
class VpsResult:
    """VPQ and STQ of a run."""

    vpq: VpqResult
    stq: StqResult
    num_videos: int
    num_frames: int

    @property
    def quirks(self) -> tuple[Quirk, ...]:
        """What in the official scripts changed a score."""
        return (*self.vpq.quirks, *self.stq.quirks)

    @property
    def undefined(self) -> dict[str, str]:
        """By score, why it is NaN."""
        return {**self.vpq.undefined, **self.stq.undefined}


class VideoPanopticScores:
    """Accumulates VPQ_k and STQ of videos, given frame by frame as maps.

    Args:
        categories: The data set's categories; their order is that of all results per category.
        windows: The k whose VPQ_k is wanted.
        definition: ``official`` or ``clean``.

    Raises:
        ValueError: a window has no frame, or none is given.
    """

    def __init__(
        self,
        categories: Sequence[Category],
        windows: Sequence[int] = LEADERBOARD_WINDOWS,
        definition: Definition = "official",
    ) -> None:
        self.tabulator = Tabulator(categories)
        self.vpq = VideoPanopticQuality(categories, windows, definition)
        self.stq = SegmentationTrackingQuality(categories, definition)
        self.num_frames = 0

    def add(self, pair: PanopticPair) -> None:
        """Adds the next frame of the video.

        Raises:
            LabelError: the frame's maps, lists and sizes do not fit together; names the frame.
        """
        table = self.tabulator.table(pair)
        self.vpq.add(table)
        self.stq.add(table)
        self.num_frames += 1

    def end_video(self) -> None:
        """Ends the video."""
        self.vpq.end_video()
        self.stq.end_video()

    def merge(self, other: VideoPanopticScores) -> None:
        """Adds the finished videos of another worker.

        Raises:
            ValueError: a video is not ended, or the windows differ.
        """
        self.vpq.merge(other.vpq)
        self.stq.merge(other.stq)
        self.num_frames += other.num_frames

    def result(self) -> VpsResult:
        """Returns the scores of the videos so far.

        Raises:
            ValueError: a video is not ended.
        """
        stq = self.stq.result()
        return VpsResult(self.vpq.result(), stq, len(stq.videos), self.num_frames)


class ImagePanopticScores:
    """Accumulates PQ of images, given as maps.

    Args:
        categories: The data set's categories; their order is that of all results per category.
        definition: ``official`` or ``clean``.
    """

    def __init__(self, categories: Sequence[Category], definition: Definition = "official") -> None:
        self.tabulator = Tabulator(categories)
        self.pq = ImagePanopticQuality(categories, definition)

    def add(self, pair: PanopticPair) -> None:
        """Adds an image.

        Raises:
            LabelError: its maps, lists and sizes do not fit together; names the image.
        """
        self.pq.add(self.tabulator.table(pair))

    def end_video(self) -> None:
        """Does nothing: images are scored one by one."""

    def merge(self, other: ImagePanopticScores) -> None:
        """Adds the images of another worker."""
        self.pq.merge(other.pq)

    def result(self) -> PqResult:
        """Returns the scores of the images so far."""
        return self.pq.result()
