"""What is predicted: videos, whole frames of them, and where their features come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from fcache.config import EVERY_SPLIT, PredictConfig
from fcache.data.dataset import entries_of
from fcache.data.features import CachedFeatures, Features
from fcache.data.footage import AnyView, Footage
from fcache.errors import CacheError, ConfigError, nearest
from fcache.store.cache import StoreCache, split_key
from fcache.train.live import PixelFeatures, StoredCanvases

USUAL_SPLIT = "val"


@dataclass(frozen=True, slots=True)
class PredictInputs:
    """Videos and their features.

    Attributes:
        view: What decides the features.
        cache: The cache's folder; None where features are computed on the way.
        videos: Whole frames on their canvases.
        contents: SHA-256 of what each video was made from, by id.
        chosen_by: How the videos were chosen, in words.
        features: Gives the features; told whether pixels alone are enough.
        lost: Id of each video that cannot be read, and why.
        in_order: Whether one thread has to read, from first to last.
    """

    view: AnyView
    cache: Path | None
    videos: tuple[Footage, ...]
    contents: Mapping[str, str]
    chosen_by: str
    features: Callable[[bool], Features]
    lost: tuple[tuple[str, str], ...] = ()
    in_order: bool = False


def open_cached(cache: str | Path, config: PredictConfig) -> PredictInputs:
    """Opens the videos of a view.

    Args:
        cache: A cache's folder, or ``FOLDER@KEYPREFIX``.
        config: Which videos.

    Raises:
        CacheNotFoundError: no such cache or view.
        CacheError: the view holds parts of frames, or mirrored ones.
        ConfigError: several views or selections, and none chosen; no such video or split.
    """
    folder, prefix = split_key(str(cache))
    view = StoreCache(folder).view(prefix)
    entries = entries_of(view, config.selection)
    listing = f"fcache ls '{view.folder.parent}' --videos"
    if not entries:
        raise ConfigError(f"view {view.key} holds no complete video to predict.", run=listing)
    lacking = f"view {view.key} has no complete video"
    entries, chosen_by = choose(entries, config, lacking=lacking, run=listing)
    videos = [view.catalogue.frames(*entry) for entry in entries]
    check_whole(videos, view.key)

    def features(pixels_only: bool) -> Features:
        cached = CachedFeatures(view)
        if not pixels_only:
            return cached
        return PixelFeatures(StoredCanvases(view), cached.mean, cached.std, cached.stride)

    contents = {entry.video_id: entry.item.content for entry in entries}
    return PredictInputs(view, folder, tuple(videos), contents, chosen_by, features)


def check_whole(videos: Iterable[Footage], key: str) -> None:
    """Accepts videos whose canvases hold whole, unmirrored frames.

    Raises:
        CacheError: one does not.
    """
    for video in videos:
        at = video.placement
        is_cropped = (at["crop_h"], at["crop_w"]) != (at["resize_h"], at["resize_w"])
        if video.draw is not None or is_cropped or at["flip"]:
            held = "crops" if video.draw is not None or is_cropped else "mirrored frames"
            raise CacheError(
                f"view {key} holds {held}, and a map is of a whole frame; expected a full view, as "
                "short_side=720 long_side_max=1333 without crop= and flip= makes."
            )


class Listed(Protocol):
    """A video, before its frames are looked at."""

    @property
    def video_id(self) -> str:
        """As the manifest calls it."""

    @property
    def split(self) -> str | None:
        """Which part of the data set it is of, where that is known."""


ListedT = TypeVar("ListedT", bound=Listed)


def choose(
    found: Sequence[ListedT], config: PredictConfig, *, lacking: str, run: str | None = None
) -> tuple[list[ListedT], str]:
    """Returns the videos that are wanted, and how they were chosen.

    Args:
        found: All of them.
        config: Which: ``videos`` and ``split``. Where it says neither, those of split "val" if
            there are such, else all.
        lacking: How an error begins: "there is no video".
        run: The command that lists them.

    Raises:
        ConfigError: no such video or split.
    """
    splits = {one.split for one in found if one.split}
    split = config.split
    if split is None and not config.videos and USUAL_SPLIT in splits:
        split = USUAL_SPLIT
    chosen, chosen_by = list(found), "all videos"
    if split not in (None, EVERY_SPLIT):
        if split not in splits:
            known = ", ".join(sorted(splits)) or "none, since no split is known"
            raise ConfigError(
                f"{lacking} of split '{split}'; expected one of: {known}, or '{EVERY_SPLIT}'.",
                run=run,
            )
        chosen = [one for one in found if one.split == split]
        chosen_by = f"split '{split}'"
    if not config.videos:
        return chosen, chosen_by
    by_id = {one.video_id: one for one in chosen}
    for video_id in config.videos:
        if video_id not in by_id:
            raise ConfigError(
                f"{lacking} '{video_id}' among {chosen_by}{nearest(video_id, by_id)}.", run=run
            )
    wanted = dict.fromkeys(config.videos)
    return [by_id[video_id] for video_id in wanted], f"{len(wanted)} named"
