"""Video consistency VC_n: how much of what stays the same in truth stays the same in prediction.

Miao et al., VSPW, 2021; the official numbers are those of VSPW's ``VC_perclip.py``. A clip is n
consecutive frames. Its value is |G and P| / |G|, where G are the pixels whose true label, and P
those whose predicted label, is the same in all n frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fcache.errors import LabelError
from fcache.eval.quirks import TEXTS, Definition, Places, Quirk, changed
from fcache.eval.steady import Bits, Labels, Mask, SteadyPixels, bits, count

LEADERBOARD_CLIPS = (8, 16)

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
        self._steady = SteadyPixels(max(clip_frames))
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
        before = self._steady.shape
        if before is not None and before != truth.shape:
            sizes = ["x".join(map(str, shape)) for shape in (truth.shape, before)]
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
        self._steady.add(truth, prediction)
        masks = bits(labelled), bits(right)
        lengths = {n: min(n, self._num_frames) for n in self._means}
        clips = {
            length: (place, self._clip(length, constant, *masks))
            for length, constant in self._steady.constant(lengths.values())
        }
        self._short = {}
        for n, length in lengths.items():
            if n in self._pending:
                self._commit(n, self._pending[n])
            (self._pending if n == length else self._short)[n] = clips[length]

    def end_video(self) -> None:
        """Ends the video; clips do not run across videos."""
        for extra, name in ((self._pending, "vc_last_clip_left_out"), (self._short, "no_windows")):
            for n, clip in extra.items():
                if self.definition == "clean":
                    self._commit(n, clip)
                else:
                    self._commit_only(n, name, clip)
        self._steady.clear()
        self._pending, self._short = {}, {}
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

    def _clip(
        self, num_frames: int, constant: tuple[Bits, Bits], labelled: Bits, right: Bits
    ) -> dict[str, float]:
        truth, both = constant
        num_labelled, num_right = count(truth & labelled), count(both & right)
        if self.definition == "clean":
            return {"": _share(num_right, num_labelled)}
        num_truth = count(truth)
        values = {
            "": _share(count(both), num_truth),
            "vc_void_counts": _share(count(both & labelled), num_labelled),
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


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
