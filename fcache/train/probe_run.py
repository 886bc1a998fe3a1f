"""The probe on a cache: split its videos, train the linear head, score it, keep some pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fcache.config import ProbeConfig
from fcache.data.canvas import IGNORE
from fcache.data.dataset import ClipDataset
from fcache.errors import ConfigError
from fcache.eval.semantic import ConfusionMatrix, mean_iou, prior_counts
from fcache.manifest import Category
from fcache.store.cache import View
from fcache.train.labels import embedded_labels
from fcache.train.probe import ProbeHead, ProbeProgress, train_probe

NUM_PICTURES = 4
HELD_OUT = 5  # without splits, every fifth video validates


@dataclass(frozen=True, slots=True)
class ProbePicture:
    """One validation frame, cut to its valid area."""

    frame: npt.NDArray[np.uint8]  # [height, width, 3]
    truth: npt.NDArray[np.uint8]  # [height, width]
    prediction: npt.NDArray[np.int64]  # [height, width]
    name: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How good a linear head on the features is.

    Attributes:
        iou: Per category, NaN for one in neither truth nor prediction.
        prior_miou: What drawing every pixel from the training frequencies would score.
        split_by: How training and validation were told apart.
    """

    categories: tuple[Category, ...]
    iou: tuple[float, ...]
    miou: float
    prior_miou: float
    pixel_accuracy: float
    num_train: int
    num_val: int
    split_by: str
    pictures: tuple[ProbePicture, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures, without the pictures."""
        names = [category.name for category in self.categories]
        figures = asdict(self)
        for name in ("categories", "pictures", "iou"):
            del figures[name]
        iou = {n: None if np.isnan(v) else v for n, v in zip(names, self.iou, strict=True)}
        return {**figures, "iou": iou}


class CachedFrames:
    """Labelled frames of a view, as the probe reads them."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def stages(self, index: int) -> list[npt.NDArray[np.floating[Any]]]:
        """The stage outputs of a frame, each [h, w, C]."""
        video, frame = self.clips.clips[index]
        clip = self.clips.view.read(video, [frame], pixels=False)
        return [clip.floats(stage)[0] for stage in range(len(clip.stages))]

    def label(self, index: int) -> npt.NDArray[np.uint8]:
        """The categories [H, W] of the padded canvas; 255 is ignored, as is padding."""
        return self.clips.label(*self.clips.clips[index])

    def picture(self, index: int, head: ProbeHead) -> ProbePicture:
        """One frame with its truth and the head's prediction."""
        video, frame = self.clips.clips[index]
        clip = self.clips.view.read(video, [frame], stages=[0], pixels=True)
        assert clip.pixels is not None
        truth = self.label(index)
        guess = head.predict(self.stages(index), (truth.shape[0], truth.shape[1]))
        height, width = clip.valid
        area = np.s_[:height, :width]
        return ProbePicture(clip.pixels[0][area], truth[area], guess[area], video.title(frame))


def run_probe(
    view: View, config: ProbeConfig, progress: Callable[[str, int, int], None]
) -> ProbeResult:
    """Trains and scores the linear head.

    Args:
        view: Where features lie.
        config: Labels, splits and the numbers of training.
        progress: Told the part (``read``, ``fit``, ``score``), what is done of it, of how much.

    Raises:
        ConfigError: no labels, or nothing labelled to train or to validate on.
    """
    train_set, val_set, split_by = _datasets(view, config)
    assert train_set.labels is not None
    categories = tuple(train_set.labels.categories)
    train, val = CachedFrames(train_set), CachedFrames(val_set)

    def tell(at: ProbeProgress) -> None:
        progress(at.part, at.done, at.total)

    head = train_probe(train, config=config, num_categories=len(categories), progress=tell)
    matrix = ConfusionMatrix(len(categories), IGNORE)
    for index in range(len(val)):
        label = val.label(index)
        matrix.add(label, head.predict(val.stages(index), (label.shape[0], label.shape[1])))
        progress("score", index + 1, len(val))
    if not matrix.truth_pixels.any():
        raise ConfigError(
            f"none of {len(val)} validation frames has a labelled pixel; the labels are from "
            f"{train_set.labels.origin}."
        )
    chosen = np.linspace(0, len(val) - 1, min(NUM_PICTURES, len(val))).astype(int)
    return ProbeResult(
        categories=categories,
        iou=tuple(matrix.iou.tolist()),
        miou=matrix.miou,
        prior_miou=mean_iou(prior_counts(matrix.truth_pixels, _pixels(train, len(categories)))),
        pixel_accuracy=matrix.pixel_accuracy,
        num_train=len(train),
        num_val=len(val),
        split_by=split_by,
        pictures=tuple(val.picture(int(index), head) for index in chosen),
    )


def _pixels(frames: CachedFrames, num_categories: int) -> npt.NDArray[np.int64]:
    """[K] labelled pixels of each category."""
    counts = np.zeros(256, np.int64)
    for index in range(len(frames)):
        counts += np.bincount(frames.label(index).ravel(), minlength=256)
    return counts[:num_categories]


def _datasets(view: View, config: ProbeConfig) -> tuple[ClipDataset, ClipDataset, str]:
    labels = config.labels or embedded_labels(view, "probe")
    everything = ClipDataset(view, labels=labels, selection=config.selection)
    splits = sorted({video.split for video, _ in everything.clips if video.split})
    if splits:
        for split in (config.train_split, config.val_split):
            if split not in splits:
                raise ConfigError(
                    f"view {view.key} has no labelled frame in split '{split}'; expected one of: "
                    f"{', '.join(splits)}. Choose by train_split= and val_split=."
                )
        train = everything.only(lambda video: video.split == config.train_split)
        val = everything.only(lambda video: video.split == config.val_split)
        return train, val, f"splits '{config.train_split}' and '{config.val_split}'"
    videos = list(dict.fromkeys(video.video_id for video, _ in everything.clips))
    held_out = set(videos[HELD_OUT - 1 :: HELD_OUT] or videos[-1:])
    if len(videos) < 2:
        raise ConfigError(
            f"view {view.key} has {len(videos)} labelled video and no splits; expected at least "
            "two videos, one of them to validate on."
        )
    train = everything.only(lambda video: video.video_id not in held_out)
    val = everything.only(lambda video: video.video_id in held_out)
    return train, val, f"no splits known: {len(held_out)} of {len(videos)} videos held out"
