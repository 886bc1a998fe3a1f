"""Semantic ground truth in a manifest's layout, beside predictions as VSPW's evaluators read them.

Predictions are ``PREDICTION/VIDEO/FRAME.png``, whose values are category ids. The truth of VSPW is
``ROOT/data/VIDEO/mask/FRAME.png`` with ``ROOT/SPLIT.txt``; other manifests say otherwise. A
frame's two PNGs are decoded when it comes up, once.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from fcache.data.archive import Place
from fcache.data.label_images import read_mask
from fcache.errors import ConfigError, LabelError, nearest
from fcache.manifest import Labels, Manifest

FRAME_FILE = "/{frame}.png"


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
    prediction: Place

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


def semantic_videos(
    manifest: Manifest, root: Path, prediction: Place, split: str
) -> list[SemanticVideo]:
    """Returns the videos of a split with their predictions.

    The masks of the ground truth say which frames there are; other predictions are left out.

    Args:
        manifest: Says where the labels lie.
        root: The data set's folder.
        prediction: A folder of masks for each video.
        split: Which videos.

    Raises:
        ConfigError: the manifest has no such split, or no semantic labels that are a folder of
            PNGs for each video.
        LabelError: the split, a video's masks or its predictions are missing.
    """
    labels, names = semantic_labels(manifest), video_ids(manifest, root, split)
    videos = []
    for name in names:
        masks = root / labels.path.removesuffix(FRAME_FILE).format(video=name, split=split)
        predicted = prediction / name
        frames = tuple(sorted(path.stem for path in masks.glob("*.png")))
        if not frames:
            raise LabelError(f"video '{name}' of split '{split}' has no mask in '{masks}'.")
        if not predicted.is_dir():
            raise LabelError(
                f"video '{name}' is missing in the prediction: '{predicted}' is no folder; "
                f"expected one for each of the {len(names)} videos of split '{split}'."
            )
        videos.append(SemanticVideo(name, frames, tuple(gaps(frames)), masks, predicted))
    return videos


def semantic_labels(manifest: Manifest) -> Labels:
    """Returns how a manifest stores semantic labels.

    Raises:
        ConfigError: it has none that are a folder of PNGs for each video.
    """
    for labels in manifest.labels:
        if labels.format == "semantic" and labels.path.endswith(FRAME_FILE):
            return labels
    raise ConfigError(
        f"manifest '{manifest.name}' has no semantic labels in a folder of PNGs for each video; "
        "expected one that has, such as vspw."
    )


def video_ids(manifest: Manifest, root: Path, split: str) -> list[str]:
    """Returns the ids of a split's videos, as the manifest lists them or its layout finds them.

    Raises:
        ConfigError: the manifest has no such split, or neither videos nor a layout.
        LabelError: the split's list cannot be read, or there is no video.
    """
    layout = manifest.layout
    if manifest.videos:
        where = f"manifest '{manifest.name}'"
        ids = [video.id for video in manifest.videos if video.split in {split, None}]
    elif layout is not None and layout.splits:
        if split not in layout.splits:
            raise ConfigError(
                f"manifest '{manifest.name}' has no split '{split}'"
                f"{nearest(split, layout.splits)}; expected one of {', '.join(layout.splits)}."
            )
        listing = root / layout.splits[split]
        where = f"split '{listing}'"
        try:
            lines = listing.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise LabelError(f"{where} cannot be read: {why}.") from error
        names = [line.strip() for line in lines if line.strip()]
        ids = [layout.id.format(video=name, split=split) for name in names]
    elif layout is not None:
        pattern = layout.videos.format(video="*", split=glob.escape(split))
        where = f"'{root / pattern}'"
        head, _, tail = layout.videos.format(video="*", split=split).partition("*")
        found = [path.relative_to(root).as_posix() for path in sorted(root.glob(pattern))]
        names = [path.removeprefix(head).removesuffix(tail) for path in found]
        ids = [layout.id.format(video=name, split=split) for name in names]
    else:
        raise ConfigError(
            f"manifest '{manifest.name}' lists no videos and has no layout to find them by."
        )
    if not ids:
        raise LabelError(f"{where} lists no video of split '{split}'.")
    return ids


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


def _read_8_bit(path: Place) -> np.ndarray:
    mask = read_mask(path)
    if mask.dtype != np.uint8:
        raise LabelError(f"label '{path}' has 16-bit values; expected 8-bit labels.")
    return mask
