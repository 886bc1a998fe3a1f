"""Video consistency VC_n: how much of what stays the same in truth stays the same in prediction.

Miao et al., VSPW, 2021; the official numbers are those of VSPW's ``VC_perclip.py``. A clip is n
consecutive frames. Its value is |G and P| / |G|, where G are the pixels whose true label, and P
those whose predicted label, is the same in all n frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcache.errors import LabelError
from fcache.eval.quirks import TEXTS, Definition, Places, Quirk, changed

LEADERBOARD_CLIPS = (8, 16)

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Clip = tuple[str, dict[str, float]]  # its last frame; its value, and that without each quirk


@dataclass(slots=True)
class Mean:
    """A running mean of clip values."""

    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        """The mean, NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    def add(self, value: float) -> None:
        """Adds a value; NaN, a clip without constant truth, is left out."""
        if not math.isnan(value):
            self.total += value
            self.count += 1

    def merge(self, other: Mean) -> None:
        """Adds the values of another mean."""
        self.total += other.total
        self.count += other.count


@dataclass(frozen=True, slots=True)
class VcResult:
    """VC_n of a run, 0..1.

    Attributes:
        vc: By n, the mean over the clips of all videos; NaN without one.
        num_clips: By n, the clips that have a value.
        quirks: What in the official script changed a VC_n.
        undefined: By score, why it is NaN.
    """

    vc: dict[int, float]
    num_clips: dict[int, int]
    quirks: tuple[Quirk, ...]
    undefined: dict[str, str]


class VideoConsistency:
    """Accumulates VC_n of videos, given frame by frame.

    Holds two frames and two counters a pixel, whatever n is: a pixel is constant over the last n
    frames where its label has not changed for n.

    Args:
        clip_frames: The n whose VC_n is wanted.
        definition: ``official``: T - n clips of a video of T frames, every label counts, right or
            wrong. ``clean``: all T - n + 1 clips, or one of T frames in a shorter video; none
            crosses a gap; only labelled pixels, and P only where the prediction is right.

    Raises:
        ValueError: a clip has no frame, or none is given.
    """

    def __init__(
        self,
        clip_frames: Sequence[int] = LEADERBOARD_CLIPS,
        definition: Definition = "official",
    ) -> None:
        if not clip_frames or min(clip_frames) < 1:
            raise ValueError(f"clip_frames={tuple(clip_frames)}; expected lengths of at least 1")
        self.definition: Definition = definition
        self._means: dict[int, dict[str, Mean]] = {n: {"": Mean()} for n in clip_frames}
        self._places: dict[int, dict[str, Places]] = {n: {} for n in clip_frames}
        self._longest = max(clip_frames)
        self._last: tuple[Labels, Labels] | None = None
        # Memory for masks: a fresh array each time costs more than filling it.
        self._masks: list[Mask] = []
        self._same: list[Labels] = []  # frames for which truth, and both, have been the same
        self._pending: dict[int, Clip] = {}
        self._short: dict[int, Clip] = {}
        self._num_frames = 0
        self._since_gap = 0

    def add(
        self,
        truth: Labels,  # [height, width] labels as stored, void included
        prediction: Labels,  # [height, width] category ids
        labelled: Mask,  # [height, width] where the true label is a category
        right: Mask,  # [height, width] where the prediction is that category
        *,
        place: str = "",
        after_gap: bool = False,
    ) -> None:
        """Adds the next frame of the video.

        Args:
            truth: True labels.
            prediction: Predicted labels.
            labelled: Where truth is a category.
            right: Where prediction equals it.
            place: Names the frame.
            after_gap: Frames are missing between the last one and this.

        Raises:
            LabelError: the frame's size differs from that of the frame before.
        """
        if self._last is not None and self._last[0].shape != truth.shape:
            sizes = ["x".join(map(str, labels.shape)) for labels in (truth, self._last[0])]
            raise LabelError(
                f"{place} is {sizes[0]} and the frame before it {sizes[1]} (height x width); "
                "VC compares frames of one size."
            )
        if after_gap:
            if self.definition == "clean":
                self.end_video()
            self._since_gap = 0
        self._num_frames += 1
        self._since_gap += 1
        self._count_same(truth, prediction)
        self._short = {}
        for n in self._means:
            if n in self._pending:
                self._commit(n, self._pending[n])
            if n <= self._num_frames:
                self._pending[n] = place, self._clip(n, labelled, right)
            else:
                self._short[n] = place, self._clip(self._num_frames, labelled, right)

    def end_video(self) -> None:
        """Ends the video; clips do not run across videos."""
        for extra, name in ((self._pending, "vc_last_clip_left_out"), (self._short, "no_windows")):
            for n, clip in extra.items():
                if self.definition == "clean":
                    self._commit(n, clip)
                else:
                    self._commit_only(n, name, clip)
        self._last, self._same, self._pending, self._short = None, [], {}, {}
        self._num_frames = self._since_gap = 0

    def merge(self, other: VideoConsistency) -> None:
        """Adds the finished videos of another worker.

        Raises:
            ValueError: a video is not ended, or the clip lengths differ.
        """
        self._check_ended()
        other._check_ended()
        if other._means.keys() != self._means.keys():
            raise ValueError(f"clips {list(other._means)} cannot be added to {list(self._means)}")
        for n, means in self._means.items():
            theirs = other._means[n]
            for name in means.keys() | theirs.keys():
                # A variant that one side never met equals its plain mean.
                mine = means.setdefault(name, Mean(means[""].total, means[""].count))
                if name:
                    mine.merge(theirs.get(name, theirs[""]))
            means[""].merge(theirs[""])
            for name, place in other._places[n].items():
                self._places[n].setdefault(name, Places()).add(place.first, place.count)

    def result(self) -> VcResult:
        """Returns the scores of the videos so far.

        Raises:
            ValueError: a video is not ended.
        """
        self._check_ended()
        vc = {n: means[""].value for n, means in self._means.items()}
        return VcResult(
            vc=vc,
            num_clips={n: means[""].count for n, means in self._means.items()},
            quirks=tuple(quirk for n in vc for quirk in self._quirks(n)),
            undefined={
                f"VC{n}": f"no clip of {n} frames with a pixel of constant true label"
                for n, value in vc.items()
                if math.isnan(value)
            },
        )

    def _quirks(self, n: int) -> list[Quirk]:
        means, places = self._means[n], self._places[n]
        found = []
        value = means[""].value
        for name in (name for name in TEXTS if name in places):
            found += changed(f"VC{n}", name, value, means[name].value, places[name])
        return found

    def _count_same(self, truth: Labels, prediction: Labels) -> None:
        if self._last is None:
            kind = np.uint8 if self._longest < 255 else np.uint32
            self._same = [np.ones(truth.shape, kind) for _ in range(2)]
            self._masks = [np.empty(truth.shape, np.bool_) for _ in range(3)]
        else:
            same_truth, same_both, full = self._masks
            np.equal(truth, self._last[0], out=same_truth)
            np.equal(prediction, self._last[1], out=same_both)
            same_both &= same_truth
            for counter, same in zip(self._same, (same_truth, same_both), strict=True):
                # As bytes: numpy would convert a mask piece by piece, four times slower.
                counter *= same.view(np.uint8)
                counter += 1
                np.greater(counter, self._longest, out=full)
                counter -= full.view(np.uint8)
        self._last = truth, prediction

    def _clip(self, num_frames: int, labelled: Mask, right: Mask) -> dict[str, float]:
        truth, both, scratch = self._masks
        for counter, constant in zip(self._same, (truth, both), strict=True):
            np.greater_equal(counter, num_frames, out=constant)
        num_labelled = np.count_nonzero(np.logical_and(truth, labelled, out=scratch))
        num_right = np.count_nonzero(np.logical_and(both, right, out=scratch))
        if self.definition == "clean":
            return {"": _share(num_right, num_labelled)}
        num_labelled_same = np.count_nonzero(np.logical_and(both, labelled, out=scratch))
        num_truth = np.count_nonzero(truth)
        value = _share(np.count_nonzero(both), num_truth)
        values = {
            "": value,
            "vc_void_counts": _share(num_labelled_same, num_labelled),
            "vc_ignores_correctness": _share(num_right, num_truth),
        }
        if self._since_gap < num_frames:
            values["vc_clip_spans_gap"] = math.nan
        return values

    def _commit(self, n: int, clip: Clip) -> None:
        place, values = clip
        means = self._means[n]
        for name in values:
            means.setdefault(name, Mean(means[""].total, means[""].count))
        for name, mean in means.items():
            value = values.get(name, values[""])
            mean.add(value)
            if value != values[""] and not (math.isnan(value) and math.isnan(values[""])):
                self._places[n].setdefault(name, Places()).add(place)

    def _commit_only(self, n: int, name: str, clip: Clip) -> None:
        """Adds a clip to one variant alone."""
        place, values = clip
        means = self._means[n]
        means.setdefault(name, Mean(means[""].total, means[""].count)).add(values[""])
        self._places[n].setdefault(name, Places()).add(place)

    def _check_ended(self) -> None:
        if self._num_frames:
            raise ValueError(f"a video is open after {self._num_frames} frames; call end_video()")


def _share(part: np.signedinteger[Any], whole: np.signedinteger[Any]) -> float:
    return float(part / whole) if whole else math.nan
