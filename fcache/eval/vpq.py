"""Video panoptic quality: VPQ_k for windows of k frames, and PQ of images.

Kim et al., Video Panoptic Segmentation, 2020; the official numbers are those of VIPSeg's
``eval_vpq_vspw.py`` and of panopticapi.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fcache.eval.quality import PanopticQuality
from fcache.eval.quirks import Definition, Quirk
from fcache.eval.tables import FrameTable
from fcache.eval.windows import WindowSums
from fcache.manifest import Category

Group = Literal["all", "things", "stuff"]

LEADERBOARD_WINDOWS = (1, 2, 4, 6)
GROUPS: tuple[Group, ...] = ("all", "things", "stuff")


@dataclass(frozen=True, slots=True)
class VpqResult:
    """VPQ of a run, 0..1 (leaderboards print it times 100).

    Attributes:
        windows: By k, the quality over all windows of k frames.
        num_windows: By k, how many there were.
        vpq: Mean of VPQ_k over k = 1, 2, 4 and 6, or over all k asked for where those four are
            not among them; NaN where one of them is.
        vpq_things: The same over things.
        vpq_stuff: The same over stuff.
        stability: VPQ_1 - VPQ_6, how much tracking costs; NaN where one of them was not asked for.
        quirks: What in the official script changed a VPQ_k.
        undefined: By score, why it is NaN.
    """

    windows: dict[int, PanopticQuality]
    num_windows: dict[int, int]
    vpq: float
    vpq_things: float
    vpq_stuff: float
    stability: float
    quirks: tuple[Quirk, ...]
    undefined: dict[str, str]

    def mean(self, windows: Sequence[int], group: Group = "all") -> float:
        """Returns the mean of VPQ_k over some k; NaN where one of them is.

        The public VIPSeg script writes that over 1, 2, 4, 6 and 8 into ``vpq-final.txt``.

        Raises:
            KeyError: a k was not asked for.
        """
        return _mean_pq(self.windows, windows, group)


class VideoPanopticQuality:
    """Accumulates VPQ_k of videos, given frame by frame as tables.

    Holds as many tables as the longest window has frames.

    Args:
        categories: As given to the ``Tabulator``.
        windows: The k whose VPQ_k is wanted.
        definition: ``official`` or ``clean``; see ``matching.Rules``. Officially a video shorter
            than k counts for nothing; clean, it is one window.

    Raises:
        ValueError: a window has no frame, or none is given.
    """

    def __init__(
        self,
        categories: Sequence[Category],
        windows: Sequence[int] = LEADERBOARD_WINDOWS,
        definition: Definition = "official",
    ) -> None:
        if not windows or min(windows) < 1:
            raise ValueError(f"windows={tuple(windows)}; expected lengths of at least 1 frame")
        self.is_thing = np.array([category.isthing for category in categories], np.bool_)
        self.sums = {k: WindowSums.of(len(categories), definition) for k in windows}
        self._recent: deque[FrameTable] = deque(maxlen=max(windows))
        self._num_frames = 0

    def add(self, table: FrameTable) -> None:
        """Adds the next frame of the video.

        Raises:
            LabelError: the official score needs an area that the JSON does not state.
        """
        self._recent.append(table)
        self._num_frames += 1
        recent = list(self._recent)
        for k, sums in self.sums.items():
            if k <= self._num_frames:
                sums.add(recent[-k:])

    def end_video(self) -> None:
        """Ends the video; windows do not run across videos."""
        for k, sums in self.sums.items():
            if 0 < self._num_frames < k:
                sums.add_short(list(self._recent))
        self._recent.clear()
        self._num_frames = 0

    def merge(self, other: VideoPanopticQuality) -> None:
        """Adds the finished videos of another worker.

        Raises:
            ValueError: a video is not ended, or the windows differ.
        """
        self._check_ended()
        other._check_ended()
        if other.sums.keys() != self.sums.keys():
            raise ValueError(f"windows {list(other.sums)} cannot be added to {list(self.sums)}")
        for k, sums in self.sums.items():
            sums.merge(other.sums[k])

    def result(self) -> VpqResult:
        """Returns the scores of the videos so far.

        Raises:
            ValueError: a video is not ended.
        """
        self._check_ended()
        windows = {k: sums.quality(self.is_thing) for k, sums in self.sums.items()}
        known = set(LEADERBOARD_WINDOWS) <= windows.keys()
        means = [
            _mean_pq(windows, LEADERBOARD_WINDOWS if known else list(windows), group)
            for group in GROUPS
        ]
        ends = [windows[k].all.pq if k in windows else math.nan for k in (1, 6)]
        return VpqResult(
            windows=windows,
            num_windows={k: sums.num_windows for k, sums in self.sums.items()},
            vpq=means[0],
            vpq_things=means[1],
            vpq_stuff=means[2],
            stability=ends[0] - ends[1],
            quirks=tuple(
                quirk
                for k, sums in self.sums.items()
                for quirk in sums.quirks(f"VPQ_{k}", self.is_thing)
            ),
            undefined=_undefined(windows, means),
        )

    def _check_ended(self) -> None:
        if self._num_frames:
            raise ValueError(f"a video is open after {self._num_frames} frames; call end_video()")


@dataclass(frozen=True, slots=True)
class PqResult:
    """PQ of images, 0..1, with what in the official script changed it and why groups are NaN."""

    quality: PanopticQuality
    num_images: int
    quirks: tuple[Quirk, ...]
    undefined: dict[str, str]


class ImagePanopticQuality:
    """Accumulates PQ of images, each given as a table.

    Args:
        categories: As given to the ``Tabulator``.
        definition: ``official`` or ``clean``; see ``matching.Rules``.
    """

    def __init__(self, categories: Sequence[Category], definition: Definition = "official") -> None:
        self.is_thing = np.array([category.isthing for category in categories], np.bool_)
        self.sums = WindowSums.of(len(categories), definition)

    def add(self, table: FrameTable) -> None:
        """Adds an image.

        Raises:
            LabelError: the official score needs an area that the JSON does not state.
        """
        self.sums.add([table])

    def merge(self, other: ImagePanopticQuality) -> None:
        """Adds the images of another worker."""
        self.sums.merge(other.sums)

    def result(self) -> PqResult:
        """Returns the scores of the images so far."""
        quality = self.sums.quality(self.is_thing)
        return PqResult(
            quality=quality,
            num_images=self.sums.num_windows,
            quirks=tuple(self.sums.quirks("PQ", self.is_thing)),
            undefined={f"PQ{name}": text for name, text in undefined_groups(quality).items()},
        )


def _mean_pq(windows: Mapping[int, PanopticQuality], chosen: Sequence[int], group: Group) -> float:
    return float(np.mean([getattr(windows[k], group).pq for k in chosen]))


def _undefined(windows: Mapping[int, PanopticQuality], means: Sequence[float]) -> dict[str, str]:
    reasons = {
        f"VPQ_{k}{suffix}": reason
        for k, quality in windows.items()
        for suffix, reason in undefined_groups(quality).items()
    }
    for suffix, mean in zip(("", "_things", "_stuff"), means, strict=True):
        if math.isnan(mean):
            names = [f"VPQ_{k}" for k in windows if f"VPQ_{k}{suffix}" in reasons]
            reasons[f"VPQ{suffix}"] = f"{', '.join(names)} of its mean undefined"
    return reasons


def undefined_groups(quality: PanopticQuality) -> dict[str, str]:
    """Returns why groups are NaN, by suffix: none for all categories, ``_things``, ``_stuff``."""
    groups = {"": quality.all, "_things": quality.things, "_stuff": quality.stuff}
    return {suffix: group.undefined for suffix, group in groups.items() if group.undefined}
