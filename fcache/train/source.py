"""Where a run's stage outputs come from: the cache, or a backbone in the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fcache.backbones import Backbone, describe
from fcache.backbones.identity import load_same, settings_of
from fcache.backbones.trained import TrainedPyramid, check_trainable
from fcache.config import BackboneSettings, SegmenterConfig, TrainConfig
from fcache.data.features import CachedFeatures, Features
from fcache.data.footage import AnyView
from fcache.errors import ConfigError
from fcache.store.cache import View
from fcache.train.data import TrainData
from fcache.train.decoded import DecodedCanvases, LiveView
from fcache.train.live import Canvases, LiveFeatures, PixelFeatures, StoredCanvases
from fcache.train.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Source:
    """Gives the features of the views of a run.

    Attributes:
        features: Of a view.
        backbone: Of pixels alone, the network that trains on them.
    """

    features: Callable[[AnyView], Features]
    backbone: TrainedPyramid | None = None


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
