"""What each command can be told, by a recipe or by ``key=value``."""

from fcache.config.predict import (
    EVERY_SPLIT,
    FREE_PREDICT_KEYS,
    PredictConfig,
    PredictFormat,
)
from fcache.config.recipes import load_recipe, read_toml, recipe_names, shipped
from fcache.config.settings import (
    Settings,
    layered,
    parse_value,
    read_overrides,
    resolve,
    split_overrides,
)
from fcache.config.sizes import Crop, ShortSide, SideRange, Size
from fcache.config.stages import (
    BackboneSettings,
    ComputeDtype,
    ExtractConfig,
    PositionRule,
    ProbeConfig,
    StoredDtype,
)
from fcache.config.train import FREE_KEYS, LiveExtract, SegmenterConfig, TrainConfig
from fcache.config.view import PATCH_14_MULTIPLE, Selection, ViewGeometry

__all__ = [
    "EVERY_SPLIT",
    "FREE_KEYS",
    "FREE_PREDICT_KEYS",
    "PATCH_14_MULTIPLE",
    "BackboneSettings",
    "ComputeDtype",
    "Crop",
    "ExtractConfig",
    "LiveExtract",
    "PositionRule",
    "PredictConfig",
    "PredictFormat",
    "ProbeConfig",
    "SegmenterConfig",
    "Selection",
    "Settings",
    "ShortSide",
    "SideRange",
    "Size",
    "StoredDtype",
    "TrainConfig",
    "ViewGeometry",
    "layered",
    "load_recipe",
    "parse_value",
    "read_overrides",
    "read_toml",
    "recipe_names",
    "resolve",
    "shipped",
    "split_overrides",
]
