"""What a run reads, opened: a cache or videos, chosen where the recipe leaves it open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fcache.config import LiveExtract, TrainConfig, resolve
from fcache.errors import ConfigError, CoverageError
from fcache.manifest import names_manifest
from fcache.store.cache import StoreCache, View, split_key
from fcache.train.data import TrainData, open_data
from fcache.train.videos import live_view, open_videos

ConfigT = TypeVar("ConfigT", bound=TrainConfig)
# What a recipe keeps of a live source when the cache is taken.
CACHED: dict[str, Any] = {
    "source": "cache",
    "weights": None,
    "live_rounded": False,
    "extract": None,
    "val_extract": None,
}


def open_inputs(
    cache: str | Path | None, videos: str | Path | None, config: ConfigT
) -> tuple[TrainData, ConfigT, list[str]]:
    """Opens what a run reads; where the recipe leaves it open, chooses the source.

    ``source=auto`` takes the cache if it has a view of the same backbone and geometry that holds
    the same frames and crops and covers the labels, else the videos.

    Args:
        cache: A cache's folder, or ``FOLDER@KEYPREFIX``.
        videos: A folder, or a manifest's path or name.
        config: The run's.

    Returns:
        The data, the recipe with the source that was chosen, and what is to be said about it.

    Raises:
        FcacheError: what ``open_data`` and ``open_videos`` tell of.
        ConfigError: cache and videos do not go with the recipe's source.
    """
    if videos is None and config.extract is not None:
        raise ConfigError("extract.* says how videos are seen; expected --videos.")
    if config.source == "auto":
        return _chosen(cache, videos, config)
    if config.source == "live" and videos is not None:
        if cache is not None:
            raise ConfigError(
                "source=live runs the backbone on the frames of --videos or on the pixels of "
                "--cache; expected one of the two, or source=auto."
            )
        return open_videos(str(videos), config), config, []
    if cache is None:
        raise ConfigError(
            "nothing says what is trained on; expected --cache, or --videos with source=live."
        )
    if videos is not None:
        raise ConfigError("source=cache reads no --videos; expected source=live or source=auto.")
    return open_data(cache, config), config, []


def _chosen(
    cache: str | Path | None, videos: str | Path | None, config: ConfigT
) -> tuple[TrainData, ConfigT, list[str]]:
    if cache is not None and videos is None:
        data, chosen, _ = open_inputs(cache, None, _with(config, CACHED))
        return data, chosen, [f"source=auto: stage outputs are read from '{cache}'"]
    reason = "no cache is given"
    if cache is not None:
        try:
            view, chosen = _as_cached(cache, str(videos), config)
            data = open_data(f"{view.folder.parent}@{view.key}", chosen)
        except CoverageError as error:
            reason = error.message
        else:
            note = f"source=auto: stage outputs are read from '{cache}', view {view.key}"
            return data, chosen, [note]
    note = f"source=auto: the backbone runs in the loop: {reason}"
    try:
        live = _with(config, {"source": "live", "view": None, "val_view": None})
    except ConfigError as error:
        raise ConfigError(f"{error.message} {note}") from None
    data, live, _ = open_inputs(None, videos, live)
    return data, live, [note]


def _with(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """The recipe with other values, checked as any recipe is."""
    return resolve(type(config), {**dict(config), **changes}, {})


def _as_cached(cache: str | Path, videos: str, config: ConfigT) -> tuple[View, ConfigT]:
    """The view that the videos would be seen as, and the recipe that trains on it.

    Raises:
        CacheError: there is no such cache, or none that can be read.
        CoverageError: it holds no such view, or other frames or crops of a video.
    """
    folder, prefix = split_key(str(cache))
    views = StoreCache(folder, config.view or prefix).views
    extract, val_extract = config.extract, config.val_extract or config.extract
    view, val_view = _matching(cache, views, extract), _matching(cache, views, val_extract)
    assert extract is not None
    assert val_extract is not None
    if extract.selection != val_extract.selection:
        raise CoverageError(
            "val_extract.* takes other frames of a video than extract.*, and a cache is read "
            "under one selection."
        )
    _check_entries(view, extract, config.train_split)
    _check_entries(val_view, val_extract, config.val_split)
    changes = {
        **CACHED,
        "view": None,
        "val_view": None if config.val_extract is None else val_view.key,
        "selection": extract.selection.identity(),
    }
    if names_manifest(videos) and config.labels is None:
        changes["labels"] = Path(videos)
    return view, _with(config, changes)


def _matching(cache: str | Path, views: Iterable[View], extract: LiveExtract | None) -> View:
    """The view of a cache that the videos would be seen as."""
    wanted = live_view(extract).identity
    for view in views:
        if all(view.identity.get(key) == value for key, value in wanted.items()):
            return view
    raise CoverageError(f"'{cache}' has no view of this backbone under this geometry and dtype.")


def _check_entries(view: View, extract: LiveExtract, split: str) -> None:
    """Refuses a view that holds a split's videos as other frames or crops than are asked for."""
    if extract.crop is not None and not extract.crops:
        raise CoverageError(
            "extract.crops=0 draws a crop of its own for every clip, and a cache holds a fixed "
            "number of a video, as extract.crops=K asks for."
        )
    if not view.videos:
        raise CoverageError(f"view {view.key} has no complete video.")
    crops = {None} if extract.crop is None else set(range(extract.crops))
    selection = extract.selection.identity()
    held: dict[str, set[int | None]] = {}
    for video_id, item, part in view.catalogue.entries():
        if part in (None, split):
            drawn = held.setdefault(video_id, set())
            drawn.update([item.draw] if dict(item.selection) == selection else [])
    for video_id, drawn in held.items():
        if not drawn:
            raise CoverageError(
                f"view {view.key} holds video '{video_id}' under another frame selection than "
                f"extract.* asks for: {selection}."
            )
        if drawn != crops:
            raise CoverageError(
                f"view {view.key} holds {len(drawn)} crops of video '{video_id}', and "
                f"extract.crops={extract.crops} asks for {len(crops)}."
            )
