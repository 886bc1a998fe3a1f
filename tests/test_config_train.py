"""The settings and recipes of train stages."""

from __future__ import annotations

from typing import Any

import pytest

from fcache.config import FREE_KEYS, SegmenterConfig, load_recipe, recipe_names, resolve
from fcache.errors import ConfigError

BARE: dict[str, Any] = {
    "adapter": "vit",
    "num_queries": 200,
    "num_frames": 1,
    "batch": 16,
    "lr": 1e-4,
    "weight_decay": 0.05,
    "steps": 20_000,
}
SEGMENTERS = [name for name in recipe_names() if load_recipe(name).get("stage") == "segmenter"]


def refused(**overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(SegmenterConfig, BARE, overrides)
    return caught.value.message


def test_segmenter_recipes_are_shipped() -> None:
    assert set(SEGMENTERS) == {
        "camvid",
        "camvid_quick",
        "segmenter_coco",
        "segmenter_demo",
        "segmenter_vipseg",
        "segmenter_vspw",
    }


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("segmenter_coco", (16, 368_750, (327_778, 355_092), 1e-4, 200)),
        ("segmenter_vipseg", (16, 20_000, (14_000,), 1e-4, 200)),
        ("segmenter_vspw", (8, 20_000, (14_000,), 1e-4, 200)),
    ],
)
def test_recipes_carry_the_published_numbers(name: str, numbers: tuple[Any, ...]) -> None:
    config = resolve(SegmenterConfig, load_recipe(name), {})
    found = (config.batch, config.steps, config.milestones, config.lr, config.num_queries)
    assert found == numbers
    assert (config.gamma, config.weight_decay, config.clip_norm) == (0.1, 0.05, 0.01)
    assert (config.adapter, config.adapter_lr_factor, config.num_layers) == ("vit", 0.1, 9)
    assert (config.dim, config.num_encoder_layers, config.num_points) == (256, 6, 12544)
    assert (config.encoder_ffn_dim, config.ffn_dim, config.prior_width) == (1024, 2048, 64)
    assert (config.num_frames, config.seed, config.checkpointing) == (1, 42, True)


def test_coco_is_fifty_epochs() -> None:
    config = resolve(SegmenterConfig, load_recipe("segmenter_coco"), {})
    # 118,287 training images; the official schedule rounds an epoch down to 7375 steps.
    assert config.steps == 50 * 7375
    assert 0 <= 118_287 / 16 - 7375 < 20
    assert config.source == "live"


def test_free_keys_are_settings() -> None:
    assert set(SegmenterConfig.model_fields) >= FREE_KEYS


def test_values_are_read_by_the_type_of_their_field() -> None:
    config = resolve(
        SegmenterConfig,
        BARE,
        {"milestones": "[10, 20]", "val_every": "none", "labels": "a/b"}
        | {"crop": "608", "selection": "{fps=5.0}", "checkpointing": "true", "amp": "bfloat16"},
    )
    assert config.milestones == (10, 20)
    assert config.crop == (608, 608)
    assert config.selection == {"fps": 5.0}
    assert (config.checkpointing, config.amp, str(config.labels)) == (True, "bfloat16", "a/b")


def test_none_is_a_value_where_it_is_one_of_the_choices() -> None:
    config = resolve(SegmenterConfig, BARE, {"adapter": "none", "amp": "none", "view": "none"})
    assert (config.adapter, config.amp, config.view) == ("none", "none", None)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"crop": "604"}, "crop: 604 is not a multiple of 32; nearest: 576, 608"),
        ({"crop": "16"}, "crop: 16 is not a multiple of 32; nearest: 32"),
        ({"milestones": "[20, 10]"}, "milestones=[20, 10] is not ascending"),
        ({"milestones": "[20000]"}, "milestone 20000 is outside the 20000 steps"),
        ({"micro_batch": "3"}, "batch=16 is no multiple of micro_batch=3"),
        ({"num_frames": "3"}, "num_frames=3 frames around a reference need range_frames="),
        ({"reverse": "true"}, "reverse=true has no meaning without sampling=consecutive"),
        ({"dim": "100"}, "dim=100 is not a multiple of 32; nearest: 96, 128"),
        ({"mrfp_ratio": "2"}, "mrfp_ratio= is a setting of adapter=comer"),
        ({"adapter": "none", "checkpointing": "true"}, "recomputes the extractors, which adapter"),
        ({"view": "ab", "val_view": "ab"}, "val_view=ab is view= itself"),
        ({"amp": "fp8"}, "amp=fp8: input should be 'none', 'bfloat16' or 'float16'"),
        ({"clip_norm": "-1"}, "clip_norm=-1: input should be greater than or equal to 0"),
    ],
)
def test_impossible_values_are_told(overrides: dict[str, str], text: str) -> None:
    assert text in refused(**overrides)


def test_problems_are_told_together() -> None:
    message = refused(crop="604", milestones="[20, 10]", dim="100")
    assert message.count("; ") >= 3
    for part in ("crop: 604", "not ascending", "dim=100"):
        assert part in message


PYRAMID = {**BARE, "adapter": "none", "source": "live"}


def test_settings_of_a_table_are_given_by_dotted_keys_and_layered_over_the_recipe() -> None:
    recipe = {**PYRAMID, "backbone": {"trainable": True, "lr_factor": 0.3}}
    config = resolve(SegmenterConfig, recipe, {"backbone.lr_factor": "0.5"})
    assert (config.backbone.trainable, config.backbone.lr_factor) == (True, 0.5)
    seen = {"model": "resnet50", "short_side": 720, "long_side_max": 1333}
    drawn = {"extract.size": "64x96", "extract.weights": "a/b.pth"}
    config = resolve(SegmenterConfig, {**PYRAMID, "extract": seen}, drawn)
    assert config.extract is not None
    # A size stands in for sides within the table too.
    assert (config.extract.size, config.extract.short_side) == ((64, 96), None)
    assert (config.extract.weights, config.extract.crops) == ("a/b.pth", 0)
    assert (
        resolve(SegmenterConfig, {**PYRAMID, "extract": seen}, {"extract": "none"}).extract is None
    )


@pytest.mark.parametrize(
    ("recipe", "overrides", "text"),
    [
        ({}, {"backbone.trainble": "true"}, "'backbone.trainble' is not a setting; nearest: back"),
        ({"backbone": {"lr_facto": 1}}, {}, "'backbone.lr_facto' is not a setting; nearest: back"),
        ({}, {"bakbone.trainable": "true"}, "not a setting; nearest: backbone.trainable"),
        ({}, {"backbone": "true"}, "'backbone' is a table; expected one of: backbone.trainable, "),
        ({}, {"backbone.lr_factor": "-1"}, "backbone.lr_factor=-1: input should be greater"),
        ({}, {"backbone.lr_factor": "1"}, "has no meaning without backbone.trainable=true"),
        ({}, {"extract.crop": "64"}, "'extract.model' is needed: give extract.model="),
        (
            {"extract": {"model": "resnet50", "short_side": 64}},
            {"extract.workers": "4"},
            "extract: workers= is of an extraction job; it has no meaning in the loop",
        ),
        ({"source": "cache"}, {"weights": "hub"}, "weights= is of a backbone in the loop"),
        (
            {"extract": {"model": "resnet50", "short_side": 64, "dtype": "int8"}},
            {"live_rounded": "true"},
            "needs channel scales, which only a cache has",
        ),
    ],
)
def test_wrong_settings_of_a_table_are_told(recipe, overrides, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(SegmenterConfig, {**PYRAMID, **recipe}, overrides)
    assert text in caught.value.message


def test_what_can_be_none_is_none_by_default() -> None:
    # A run's recipe.toml leaves out what is none, and reading it must give the same settings.
    for name, field in SegmenterConfig.model_fields.items():
        if "None" in str(field.annotation):
            assert field.default is None, name


@pytest.mark.parametrize("name", SEGMENTERS)
def test_recipes_say_what_they_are(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe["kind"] == "stage"
    assert len(recipe["about"]) <= 100
