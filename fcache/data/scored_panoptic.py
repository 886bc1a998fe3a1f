"""Panoptic ground truth beside predictions, in the layouts that the official evaluators read.

VIPSeg: ``TRUTH/VIDEO/FRAME.png`` with its JSON, and a submission of ``pred.json`` with
``pan_pred/VIDEO/FRAME.png``. COCO: one JSON and one folder of PNGs on each side. Opening walks the
JSON for its structure; a frame's segments and its two PNGs are read when it comes up, each once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcache.data.label_images import read_segment_ids
from fcache.data.panoptic_entries import Entry, check_order, walk_images, walk_videos
from fcache.data.panoptic_json import FrameSegments, segments_of
from fcache.errors import LabelError


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
    folder: Path
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


def vipseg_videos(truth: Path, truth_json: Path, prediction: Path) -> list[PanopticVideo]:
    """Returns the videos of a VIPSeg ground truth with a submission's maps.

    As in the official scripts, the ground truth's JSON says which videos and frames there are,
    and predicted frames are paired with them by position.

    Args:
        truth: The folder of panoptic PNGs, a folder for each video.
        truth_json: Its JSON, with ``videos`` and ``annotations``.
        prediction: The submission's folder, with ``pred.json`` and ``pan_pred``.

    Raises:
        LabelError: a JSON is damaged or has another shape, or a video or frame is missing.
    """
    pred_json = prediction / "pred.json"
    images, listed = walk_videos(truth_json, "the ground truth")
    _, predicted = walk_videos(pred_json, "the prediction")
    if not images:
        raise LabelError(f"'{truth_json}', the ground truth, lists no 'videos'.")
    videos = []
    for video_id, names in images.items():
        for entries, path in ((listed, truth_json), (predicted, pred_json)):
            if video_id not in entries:
                raise LabelError(
                    f"video '{video_id}' has no annotations in '{path}', which holds "
                    f"{len(entries)} videos; expected every video of '{truth_json}'."
                )
            check_order(video_id, names, entries[video_id], path)
        files = [f"{name}.png" for name in names]
        sides = [
            Side(path, folder / video_id, tuple(map(_renamed, entries[video_id], files)))
            for entries, path, folder in (
                (listed, truth_json, truth),
                (predicted, pred_json, prediction / "pan_pred"),
            )
        ]
        videos.append(PanopticVideo(video_id, tuple(names), *sides))
    return videos


def coco_images(
    truth: Path, truth_json: Path, prediction: Path, prediction_json: Path
) -> list[PanopticVideo]:
    """Returns the images of a COCO panoptic ground truth, each as a video of one frame.

    Images are paired by ``image_id``; each side's JSON names its PNGs. Predictions for images that
    the ground truth does not annotate are left out, as in panopticapi.

    Raises:
        LabelError: a JSON is damaged or has another shape, or an image has no prediction.
    """
    listed = walk_images(truth_json, "the ground truth")
    predicted = walk_images(prediction_json, "the prediction")
    images = []
    for image_id, entry in listed.items():
        guess = predicted.get(image_id)
        if guess is None:
            raise LabelError(
                f"image '{entry.stem}' (image_id {image_id}) has no prediction in "
                f"'{prediction_json}'; expected one for every image of '{truth_json}'."
            )
        images.append(
            PanopticVideo(
                entry.stem,
                (entry.stem,),
                Side(truth_json, truth, (entry,)),
                Side(prediction_json, prediction, (guess,)),
            )
        )
    return images


def _renamed(entry: Entry, file_name: str) -> Entry:
    return Entry(file_name, entry.span)
