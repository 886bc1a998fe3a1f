"""What a run reads: the clips it trains on and the frames it validates on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fcache.config import TrainConfig
from fcache.data.coverage import check_coverage
from fcache.data.features import Features
from fcache.data.footage import AnyView, Footage
from fcache.data.labels import LabelReader
from fcache.data.loader import ClipLoader
from fcache.data.sampling import ClipRequest, ClipSampler, ClipsInOrder, FrameSampling
from fcache.data.targets import ClipLabels
from fcache.data.videos import ClipVideo, LabelKind, clip_videos
from fcache.data.windows import TokenWindows
from fcache.errors import ConfigError
from fcache.manifest import Category
from fcache.store.cache import StoreCache, View, split_key
from fcache.train.distributed import World
from fcache.train.labels import embedded_labels
from fcache.train.scores import ImageScores
from fcache.train.stage import Batch

HELD_OUT = 5  # without splits, every fifth video validates
LOOKED_AT = 20  # videos that tell whether labels are panoptic


@dataclass(frozen=True, slots=True)
class TrainData:
    """The views, labels and videos of a run.

    Attributes:
        where: The option of the command line that names it, and what it says.
        cache: The cache's folder; None where videos are decoded in the loop.
        view: What is trained on.
        val_view: What is validated on.
        labels: Of both.
        videos: Trained on.
        frames: Validated on.
        split_by: How the two were told apart.
        quarantined: Videos of the training split that the extraction left out, and why.
    """

    where: tuple[str, str]
    cache: Path | None
    view: AnyView
    val_view: AnyView
    labels: ClipLabels
    videos: tuple[ClipVideo, ...]
    frames: tuple[ClipRequest, ...]
    split_by: str
    quarantined: tuple[tuple[str, str], ...]

    @property
    def categories(self) -> tuple[Category, ...]:
        """In model order."""
        return self.labels.reader.categories

    @property
    def kind(self) -> LabelKind:
        """Which labels."""
        return self.labels.kind


def open_data(cache: str | Path, config: TrainConfig) -> TrainData:
    """Opens what a run reads, and checks that all of it is there.

    Args:
        cache: A cache's folder, or ``FOLDER@KEYPREFIX``.
        config: The run's.

    Raises:
        CacheNotFoundError: no such cache or view.
        CacheError: several views, and none chosen.
        ConfigError: there are no labels, or the cache lacks videos that they need; the command
            that adds them is named.
    """
    folder, prefix = split_key(str(cache))
    store = StoreCache(folder)
    view = store.view(config.view or prefix)
    val_view = view if config.val_view is None else store.view(config.val_view)
    check_alike(view, val_view)
    reader = (
        embedded_labels(view, "train") if config.labels is None else _named_labels(config, view)
    )
    kind = kind_of(config, reader, _some_frames(view))
    quarantined: list[tuple[str, str]] = []
    train, val, split_by = _split(config, view, val_view, reader, kind, quarantined)
    return TrainData(
        where=("--cache", f"{folder.absolute()}@{view.key}"),
        cache=folder,
        view=view,
        val_view=val_view,
        labels=ClipLabels(reader, kind),
        videos=tuple(train),
        frames=validation_frames(val, config.val_frames),
        split_by=split_by,
        quarantined=tuple(quarantined),
    )


def train_loader(
    data: TrainData, config: TrainConfig, world: World, features: View | Features, first_step: int
) -> ClipLoader:
    """Returns this rank's steps, from ``first_step`` to the last.

    Raises:
        ConfigError: the ranks' micro-batches do not fill the batch, or a crop that does not fit.
    """
    micro_batch = config.micro_batch or max(1, config.batch // world.size)
    sampler = ClipSampler(
        data.videos,
        FrameSampling(config.num_frames, config.range_frames, config.sampling, config.reverse),
        batch=config.batch,
        micro_batch=micro_batch,
        seed=config.seed,
        windows=None if config.crop is None else TokenWindows.of(data.view, config.crop),
    )
    return ClipLoader(
        features,
        sampler,
        data.labels,
        first_step=first_step,
        end_step=config.steps,
        rank=world.rank,
        world_size=world.size,
        micro_batch=micro_batch,
        num_readers=config.num_readers,
        ahead=config.ahead,
        pin_memory=world.device.type == "cuda",
    )


@contextmanager
def validation(
    data: TrainData, config: TrainConfig, world: World, features: View | Features
) -> Iterator[tuple[Iterable[Batch], ImageScores]]:
    """Opens this rank's validation frames, one after another, and counts to begin with."""
    clips = ClipsInOrder(data.frames[world.rank :: world.size])
    with ClipLoader(
        features,
        clips,
        data.labels,
        end_step=clips.num_steps,
        num_readers=config.num_readers,
        ahead=config.ahead,
        pin_memory=world.device.type == "cuda",
    ) as loader:
        batches = (batch.to(world.device) for step in loader for batch in step.micro_batches)
        yield batches, ImageScores(data.categories, data.kind)


def validation_frames(videos: Sequence[ClipVideo], most: int | None) -> tuple[ClipRequest, ...]:
    """Returns every labelled frame of the videos, of each crop, or ``most`` of them evenly."""
    frames = [
        ClipRequest(drawn, (position,))
        for video in videos
        for drawn, labelled in zip(video.draws, video.labelled, strict=True)
        for position in labelled
    ]
    if most is None or len(frames) <= most:
        return tuple(frames)
    return tuple(frames[index] for index in np.linspace(0, len(frames) - 1, most).astype(int))


def _split(
    config: TrainConfig,
    view: View,
    val_view: View,
    labels: LabelReader,
    kind: LabelKind,
    quarantined: list[tuple[str, str]],
) -> tuple[list[ClipVideo], list[ClipVideo], str]:
    """Returns the videos to train and to validate on, and how they were told apart."""
    if any(entry.split for entry in view.catalogue.entries()):
        told = None if config.labels is None else str(config.labels)
        parts = []
        for part, split in ((view, config.train_split), (val_view, config.val_split)):
            quarantined += check_coverage(part, labels, split, manifest=told).quarantined
            parts.append(clip_videos(part, labels, kind, split=split, selection=config.selection))
        return parts[0], parts[1], f"splits '{config.train_split}' and '{config.val_split}'"
    videos = clip_videos(view, labels, kind, selection=config.selection)
    others = clip_videos(val_view, labels, kind, selection=config.selection)
    return held_out(config, videos, others, f"view {view.key}")


def held_out(
    config: TrainConfig, videos: Sequence[ClipVideo], others: Sequence[ClipVideo], where: str
) -> tuple[list[ClipVideo], list[ClipVideo], str]:
    """Returns videos to train and to validate on where no splits are known, and what was done.

    Args:
        config: The run's.
        videos: As they are trained on, sorted by id.
        others: As they are validated on.
        where: Names them in the error.

    Raises:
        ConfigError: there is one video alone.
    """
    if config.train_split == config.val_split:
        return list(videos), list(others), "no splits known: all videos train and validate"
    ids = [video.video_id for video in videos]
    if len(ids) < 2:
        raise ConfigError(
            f"{where} has {len(ids)} labelled video and no splits; expected at least two "
            "videos, one of them to validate on, or val_split=train."
        )
    last = set(ids[HELD_OUT - 1 :: HELD_OUT] or ids[-1:])
    train = [video for video in videos if video.video_id not in last]
    val = [video for video in others if video.video_id in last]
    return train, val, f"no splits known: {len(last)} of {len(ids)} videos held out"


def kind_of(config: TrainConfig, labels: LabelReader, some: Iterable[Footage]) -> LabelKind:
    """Returns which labels a run trains on: the recipe's, or panoptic ones if there are any.

    Args:
        config: The run's.
        labels: Of the frames.
        some: Videos, of which the first are looked at.
    """
    if config.targets != "auto":
        return config.targets
    for frames in islice(some, LOOKED_AT):
        if any(labels.has_panoptic(frames.video_id, name, frames.split) for name in frames.names):
            return "panoptic"
    return "semantic"


def _some_frames(view: View) -> Iterator[Footage]:
    return (view.catalogue.frames(*entry) for entry in view.catalogue.entries())


def _named_labels(config: TrainConfig, view: View) -> LabelReader:
    assert config.labels is not None
    return LabelReader.open(str(config.labels), video_ids=view.videos)


def check_alike(view: AnyView, val_view: AnyView) -> None:
    """Refuses a view to validate on whose features are another backbone's.

    Raises:
        ConfigError: it is.
    """
    for key in ("backbone", "normalisation"):
        if view.identity[key] != val_view.identity[key]:
            raise ConfigError(
                f"view {val_view.key} to validate on has another {key} than view {view.key}; "
                "expected features of the same network.",
                run=f"fcache ls '{view.folder.parent}'" if isinstance(view, View) else None,
            )
