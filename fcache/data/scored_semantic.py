"""Semantic ground truth beside predictions, in the layout that VSPW's evaluators read.

``ROOT/data/VIDEO/mask/FRAME.png`` with ``ROOT/SPLIT.txt``, and ``PREDICTION/VIDEO/FRAME.png``,
whose values are category ids. A frame's two PNGs are decoded when it comes up, once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from fcache.data.label_images import read_mask
from fcache.errors import LabelError


@dataclass(frozen=True, slots=True)
class SemanticFrame:
    """A frame's true and predicted labels.

    Attributes:
        truth: [height, width] uint8, labels as stored, void included.
        prediction: [height, width] uint8, category ids.
        after_gap: Frames are missing between the last one and this, by their numbers.
    """

    video_id: str
    frame_name: str
    truth: np.ndarray
    prediction: np.ndarray
    after_gap: bool


@dataclass(frozen=True, slots=True)
class SemanticVideo:
    """A video whose frames are read one by one.

    Attributes:
        names: Frame names, in order.
        after_gap: Of each frame, whether frames are missing before it.
        truth: The folder of its masks.
        prediction: The folder of its predictions.
    """

    id: str
    names: tuple[str, ...]
    after_gap: tuple[bool, ...]
    truth: Path
    prediction: Path

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.names)

    def frame(self, position: int) -> SemanticFrame:
        """Reads a frame.

        Raises:
            LabelError: a mask is missing, damaged, or has several channels or 16 bits; names
                video and frame.
        """
        name = self.names[position]
        try:
            truth = _read_8_bit(self.truth / f"{name}.png")
            prediction = _read_8_bit(self.prediction / f"{name}.png")
        except LabelError as error:
            raise LabelError(f"video '{self.id}' frame '{name}': {error.message}") from error
        return SemanticFrame(self.id, name, truth, prediction, self.after_gap[position])


def vspw_videos(root: Path, prediction: Path, split: str = "val") -> list[SemanticVideo]:
    """Returns the videos of a VSPW split with a submission's masks.

    The masks of the ground truth say which frames there are; other predictions are left out.

    Args:
        root: The folder VSPW_480p.
        prediction: A folder of masks for each video.
        split: Names ``root/SPLIT.txt``, a video a line.

    Raises:
        LabelError: the split, a video's masks or its predictions are missing.
    """
    listing = root / f"{split}.txt"
    try:
        names = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise LabelError(f"split '{listing}' cannot be read: {error.strerror}.") from error
    videos = []
    for name in filter(None, names):
        masks, predicted = root / "data" / name / "mask", prediction / name
        frames = tuple(sorted(path.stem for path in masks.glob("*.png")))
        if not frames:
            raise LabelError(f"video '{name}' of '{listing}' has no mask in '{masks}'.")
        if not predicted.is_dir():
            raise LabelError(
                f"video '{name}' is missing in the prediction: '{predicted}' is no folder; "
                f"expected one for each of the {len(names)} videos of '{listing}'."
            )
        videos.append(SemanticVideo(name, frames, tuple(gaps(frames)), masks, predicted))
    if not videos:
        raise LabelError(f"split '{listing}' lists no video.")
    return videos


def gaps(names: Sequence[str]) -> list[bool]:
    """Returns for every frame whether frames are missing before it, by the numbers in the names.

    Frames may be every third of a video: a gap is a step of at least twice the median step.
    Names without a number say nothing.
    """
    found = [re.search(r"(\d+)\D*$", name) for name in names]
    numbers = [int(match.group(1)) for match in found if match]
    if len(numbers) < max(2, len(names)):
        return [False] * len(names)
    steps = [after - before for before, after in pairwise(numbers)]
    usual = median(steps)
    return [False, *(step >= 2 * usual > 0 for step in steps)]


def _read_8_bit(path: Path) -> np.ndarray:
    mask = read_mask(path)
    if mask.dtype != np.uint8:
        raise LabelError(f"label '{path}' has 16-bit values; expected 8-bit labels.")
    return mask
