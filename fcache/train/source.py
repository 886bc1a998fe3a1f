"""Where a run's stage outputs come from: the cache, or a backbone in the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fcache.backbones import Backbone, describe
from fcache.backbones.identity import load_same, settings_of
from fcache.backbones.trained import TrainedPyramid, check_trainable
from fcache.config import BackboneSettings, LiveExtract, SegmenterConfig, TrainConfig
from fcache.data.features import CachedFeatures, Features
from fcache.data.footage import AnyView
from fcache.errors import CacheCorruptError, CacheError, ConfigError
from fcache.manifest import names_manifest
from fcache.store.cache import StoreCache, View, split_key
from fcache.train.data import TrainData, open_data
from fcache.train.decoded import DecodedCanvases, LiveView
from fcache.train.live import Canvases, LiveFeatures, PixelFeatures, Rounding, StoredCanvases
from fcache.train.videos import live_view, open_videos

ConfigT = TypeVar("ConfigT", bound=TrainConfig)
# What a recipe keeps of a live source when the cache is taken.
CACHED = {
    "source": "cache",
    "weights": None,
    "live_rounded": False,
    "extract": None,
    "val_extract": None,
}


@dataclass(frozen=True, slots=True)
class Source:
    """Gives the features of the views of a run.

    Attributes:
        features: Of a view.
        backbone: Of pixels alone, the network that trains on them.
    """

    features: Callable[[AnyView], Features]
    backbone: TrainedPyramid | None = None


def open_inputs(
    cache: str | Path | None, videos: str | Path | None, config: ConfigT
) -> tuple[TrainData, ConfigT, list[str]]:
    """Opens what a run reads; where the recipe leaves it open, chooses the source.

    ``source=auto`` takes the cache if it has a view of the same backbone and geometry that covers
    the labels, else the videos.

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
    if config.source == "auto":
        return _chosen(cache, videos, config)
    if videos is None and config.extract is not None:
        raise ConfigError("extract.* says how videos are seen; expected --videos.")
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


def open_source(config: TrainConfig, data: TrainData, device: torch.device) -> Source:
    """Returns what the recipe's ``source`` says, with its backbone loaded where it is live.

    Raises:
        ConfigError: the weights here are others than the view's, or the backbone cannot train.
        WeightsError: the weights cannot be found.
    """
    if config.source != "live":
        return Source(_cached)
    if trains_backbone(config):
        settings = live_settings(config, data.view, is_trained=True)
        check_trainable(describe(settings))
        loaded = load_same(data.view.identity, settings, device=device)
        return Source(_pixels, TrainedPyramid.of(loaded))
    compiled = config.extract is not None and config.extract.compile
    backbones: dict[BackboneSettings, Backbone] = {}
    for view in (data.view, data.val_view):  # they may differ in the arithmetic
        settings = live_settings(config, view)
        if settings not in backbones:
            backbones[settings] = load_same(
                view.identity, settings, device=device, compile=compiled
            )

    def features(of: AnyView) -> Features:
        return LiveFeatures(
            _canvases(of),
            backbones[live_settings(config, of)],
            batch=_recipe_of(of).get("batch", 1),
            rounding=_rounding(of, device) if config.live_rounded else None,
        )

    return Source(features)


def trains_backbone(config: TrainConfig) -> bool:
    """Says whether the backbone is part of what trains."""
    return isinstance(config, SegmenterConfig) and config.backbone.trainable


def live_settings(
    config: TrainConfig, view: AnyView, *, is_trained: bool = False
) -> BackboneSettings:
    """Returns the settings that make a view's backbone here.

    Raises:
        ConfigError: nothing says where its weights are.
    """
    recipe = _recipe_of(view)
    weights = config.weights or recipe.get("weights")
    if weights is None:
        raise ConfigError(
            f"view {view.key} does not record where its backbone's weights lay; expected "
            "weights=FILE, or weights=hub."
        )
    return settings_of(
        view.identity,
        weights,
        model=recipe.get("model"),
        compute_dtype="float32" if is_trained else None,
    )


def _recipe_of(view: AnyView) -> Mapping[str, Any]:
    """The settings of the extraction that a view comes from, or would."""
    if isinstance(view, LiveView):
        return view.extract.model_dump()
    assert isinstance(view, View)
    recipe: Mapping[str, Any] = view.index.attributes["provenance"].get("recipe") or {}
    return recipe


def _chosen(
    cache: str | Path | None, videos: str | Path | None, config: ConfigT
) -> tuple[TrainData, ConfigT, list[str]]:
    live = config.model_copy(update={"source": "live", "view": None, "val_view": None})
    cached = config.model_copy(update=CACHED)
    if cache is None:
        data, config, _ = open_inputs(None, videos, live)
        return data, config, ["source=auto: the backbone runs in the loop: no cache is given"]
    if videos is None:
        data, config, _ = open_inputs(cache, None, cached)
        return data, config, [f"source=auto: stage outputs are read from '{cache}'"]
    try:
        view = _matching(cache, config.extract)
        if config.val_extract is not None:
            cached = cached.model_copy(update={"val_view": _matching(cache, config.val_extract)})
        if names_manifest(str(videos)) and config.labels is None:
            cached = cached.model_copy(update={"labels": Path(videos)})
        data = open_data(f"{split_key(str(cache))[0]}@{view}", cached)
    except CacheCorruptError:
        raise
    except (CacheError, ConfigError) as error:
        note = f"source=auto: the backbone runs in the loop: {error.message}"
        return open_videos(str(videos), live), live, [note]
    return data, cached, [f"source=auto: stage outputs are read from '{cache}', view {view}"]


def _matching(cache: str | Path, extract: LiveExtract | None) -> str:
    """The key of the cache's view that the videos would be seen as.

    Raises:
        CacheError: there is no such cache or view.
    """
    wanted = live_view(extract).identity
    folder, prefix = split_key(str(cache))
    for view in StoreCache(folder, prefix).views:
        if all(view.identity.get(key) == value for key, value in wanted.items()):
            return view.key
    raise CacheError(f"'{cache}' has no view of this backbone under this geometry and dtype.")


def _cached(of: AnyView) -> Features:
    assert isinstance(of, View)
    return CachedFeatures(of)


def _pixels(of: AnyView) -> Features:
    normalisation = of.identity["normalisation"]
    return PixelFeatures(
        _canvases(of), normalisation["mean"], normalisation["std"], of.layout.strides[-1]
    )


def _canvases(of: AnyView) -> Canvases:
    if isinstance(of, LiveView):
        return DecodedCanvases(of.extract.selection, of.layout.strides[-1])
    assert isinstance(of, View)
    return StoredCanvases(of)


def _rounding(of: AnyView, device: torch.device) -> Rounding:
    if "derived_from" in of.identity:
        raise ConfigError(
            f"live_rounded=true: view {of.key} is a copy, whose values were rounded before they "
            "were rounded to its own type; expected a view that an extraction wrote, or "
            "live_rounded=false."
        )
    scales = of.channel_scales if isinstance(of, View) else ()
    on_device = tuple(torch.from_numpy(scale).to(device) for scale in scales)
    return Rounding(of.identity["dtype"], on_device)
