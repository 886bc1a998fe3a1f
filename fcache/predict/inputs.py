"""What is predicted: videos, whole frames of them, and where their features come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcache.config import EVERY_SPLIT, PredictConfig
from fcache.data.dataset import entries_of
from fcache.data.features import CachedFeatures, Features
from fcache.data.footage import AnyView, Footage
from fcache.errors import CacheError, ConfigError, nearest
from fcache.store.cache import StoreCache, View, split_key
from fcache.store.frames import Entry
from fcache.train.live import PixelFeatures, StoredCanvases

USUAL_SPLIT = "val"


@dataclass(frozen=True, slots=True)
class PredictInputs:
    """Videos and their features.

    Attributes:
        view: What decides the features.
        cache: The cache's folder; None where features are computed on the way.
        videos: Whole frames on their canvases.
        chosen_by: How the videos were chosen, in words.
        features: Gives the features; told whether pixels alone are enough.
        lost: Id of each video that cannot be read, and why.
        in_order: Whether one thread has to read, from first to last.
    """

    view: AnyView
    cache: Path | None
    videos: tuple[Footage, ...]
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
    entries, chosen_by = _chosen(view, config)
    videos = [view.catalogue.frames(*entry) for entry in entries]
    check_whole(videos, view.key)

    def features(pixels_only: bool) -> Features:
        cached = CachedFeatures(view)
        if not pixels_only:
            return cached
        return PixelFeatures(StoredCanvases(view), cached.mean, cached.std, cached.stride)

    return PredictInputs(view, folder, tuple(videos), chosen_by, features)


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


def _chosen(view: View, config: PredictConfig) -> tuple[Sequence[Entry], str]:
    """The entries of the videos that are wanted, and how they were chosen."""
    entries = entries_of(view, config.selection)
    if not entries:
        raise ConfigError(
            f"view {view.key} holds no complete video to predict.",
            run=f"fcache ls '{view.folder.parent}' --videos",
        )
    splits = {entry.split for entry in entries if entry.split}
    split = config.split
    if split is None and not config.videos and USUAL_SPLIT in splits:
        split = USUAL_SPLIT
    chosen_by = "all videos"
    if split not in (None, EVERY_SPLIT):
        if split not in splits:
            known = ", ".join(sorted(splits)) or "none, since no split is known"
            raise ConfigError(
                f"view {view.key} has no complete video of split '{split}'; expected one of: "
                f"{known}, or '{EVERY_SPLIT}'.",
                run=f"fcache ls '{view.folder.parent}' --videos",
            )
        entries = [entry for entry in entries if entry.split == split]
        chosen_by = f"split '{split}'"
    if not config.videos:
        return entries, chosen_by
    by_id = {entry.video_id: entry for entry in entries}
    for video_id in config.videos:
        if video_id not in by_id:
            raise ConfigError(
                f"view {view.key} has no complete video '{video_id}' among {chosen_by}"
                f"{nearest(video_id, by_id)}.",
                run=f"fcache ls '{view.folder.parent}' --videos",
            )
    wanted = dict.fromkeys(config.videos)
    return [by_id[video_id] for video_id in wanted], f"{len(wanted)} named"
