"""Panoptic ground truth beside predictions, in the layouts that the official evaluators read.

VIPSeg: ``TRUTH/VIDEO/FRAME.png`` with its JSON, and a submission of ``pred.json`` with
``pan_pred/VIDEO/FRAME.png``. COCO: one JSON and one folder of PNGs on each side. Opening walks the
JSON for its structure; a frame's segments and its two PNGs are read when it comes up, each once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcache.data.archive import Place
from fcache.data.label_images import read_segment_ids
from fcache.data.panoptic_entries import Entry, check_order, walk_images, walk_videos
from fcache.data.panoptic_json import FrameSegments, segments_of
from fcache.errors import LabelError
from fcache.manifest import Category


@dataclass(frozen=True, slots=True)
class PanopticFrame:
    """A frame's true and predicted segments.

    Attributes:
        truth_ids: [height, width] int32, 0 for void.
        prediction_ids: The same.
    """

    video_id: str
    frame_name: str
    truth_ids: np.ndarray
    prediction_ids: np.ndarray
    truth_segments: FrameSegments
    prediction_segments: FrameSegments


@dataclass(frozen=True, slots=True)
class Side:
    """The maps of one video, true or predicted.

    Attributes:
        json_path: Where the entries lie.
        folder: Where the PNGs lie.
        entries: One for each frame.
    """

    json_path: Path
    folder: Place
    entries: tuple[Entry, ...]

    def ids(self, position: int) -> np.ndarray:  # [height, width] int32
        """Returns the map of a frame.

        Raises:
            LabelError: it is missing, damaged, or no 8-bit RGB image.
        """
        return read_segment_ids(self.folder / self.entries[position].file_name)

    def segments(self, position: int) -> FrameSegments:
        """Returns the segments that the JSON lists for a frame.

        Raises:
            LabelError: the entry has no list of segments with id and category_id.
        """
        try:
            with self.json_path.open("rb") as file:
                return segments_of(self.entries[position].span.read(file)["segments_info"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LabelError(
                f"'{self.json_path}' lists no usable segments, each with id and category_id: "
                f"{error!r}."
            ) from error


@dataclass(frozen=True, slots=True)
class PanopticVideo:
    """A video, or a single image, whose frames are read one by one."""

    id: str
    names: tuple[str, ...]
    truth: Side
    prediction: Side

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.names)

    def frame(self, position: int) -> PanopticFrame:
        """Reads a frame.

        Raises:
            LabelError: a map is missing, damaged, or no 8-bit RGB image, or its entry lists no
                segments; names video and frame.
        """
        name = self.names[position]
        try:
            return PanopticFrame(
                self.id,
                name,
                self.truth.ids(position),
                self.prediction.ids(position),
                self.truth.segments(position),
                self.prediction.segments(position),
            )
        except LabelError as error:
            where = f"video '{self.id}' frame '{name}'" if self.id != name else f"image '{name}'"
            raise LabelError(f"{where}: {error.message}") from error


@dataclass(frozen=True, slots=True)
class PanopticFiles:
    """Panoptic maps of one side: a JSON, and the folder of its PNGs."""

    json_path: Path
    folder: Place


@dataclass(frozen=True, slots=True)
class PanopticSet:
    """Videos or images to be scored.

    Attributes:
        videos: One by one.
        categories: Those that the ground truth's JSON lists, by ascending id; it may list none.
    """

    videos: tuple[PanopticVideo, ...]
    categories: tuple[Category, ...]


def vipseg_videos(truth: PanopticFiles, prediction: PanopticFiles) -> PanopticSet:
    """Returns the videos of a VIPSeg ground truth with a submission's maps.

    As in the official scripts, the ground truth's JSON says which videos and frames there are,
    and predicted frames are paired with them by position.

    Args:
        truth: Its folder has a folder for each video, its JSON ``videos`` and ``annotations``.
        prediction: The same, less ``videos``.

    Raises:
        LabelError: a JSON is damaged or has another shape, or a video or frame is missing.
    """
    listed = walk_videos(truth.json_path, "the ground truth")
    predicted = walk_videos(prediction.json_path, "the prediction")
    if not listed.names:
        raise LabelError(f"'{truth.json_path}', the ground truth, lists no 'videos'.")
    videos = []
    for video_id, names in listed.names.items():
        files = [f"{name}.png" for name in names]
        sides = []
        for entries, of in ((listed.entries, truth), (predicted.entries, prediction)):
            if video_id not in entries:
                raise LabelError(
                    f"video '{video_id}' has no annotations in '{of.json_path}', which holds "
                    f"{len(entries)} videos; expected every video of '{truth.json_path}'."
                )
            check_order(video_id, names, entries[video_id], of.json_path)
            frames = tuple(map(_renamed, entries[video_id], files))
            sides.append(Side(of.json_path, of.folder / video_id, frames))
        videos.append(PanopticVideo(video_id, tuple(names), *sides))
    return PanopticSet(tuple(videos), listed.categories)


def coco_images(truth: PanopticFiles, prediction: PanopticFiles) -> PanopticSet:
    """Returns the images of a COCO panoptic ground truth, each as a video of one frame.

    Images are paired by ``image_id``; each side's JSON names its PNGs. Predictions for images that
    the ground truth does not annotate are left out, as in panopticapi.

    Raises:
        LabelError: a JSON is damaged or has another shape, lists no image, or an image has no
            prediction.
    """
    listed = walk_images(truth.json_path, "the ground truth")
    predicted = walk_images(prediction.json_path, "the prediction")
    if not listed.entries:
        raise LabelError(f"'{truth.json_path}', the ground truth, lists no 'annotations'.")
    images = []
    for image_id, entry in listed.entries.items():
        guess = predicted.entries.get(image_id)
        if guess is None:
            raise LabelError(
                f"image '{entry.stem}' (image_id {image_id}) has no prediction in "
                f"'{prediction.json_path}'; expected one for every image of '{truth.json_path}'."
            )
        sides = [
            Side(of.json_path, of.folder, (side,))
            for of, side in ((truth, entry), (prediction, guess))
        ]
        images.append(PanopticVideo(entry.stem, (entry.stem,), *sides))
    return PanopticSet(tuple(images), listed.categories)


def _renamed(entry: Entry, file_name: str) -> Entry:
    return Entry(file_name, entry.span)
