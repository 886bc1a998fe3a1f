"""Recipes, overrides and settings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fcache.config import (
    ExtractConfig,
    ProbeConfig,
    SegmenterConfig,
    Selection,
    Settings,
    SideRange,
    ViewGeometry,
    layered,
    load_recipe,
    parse_value,
    read_toml,
    recipe_names,
    resolve,
    shipped,
    split_overrides,
)
from fcache.errors import ConfigError
from fcache.store.identity import view_key

KINDS: dict[str, type[Settings]] = {
    "extract": ExtractConfig,
    "probe": ProbeConfig,
    "segmenter": SegmenterConfig,
}
MODEL = {"model": "vit_small_patch14_dinov2", "short_side": 720}
CROPS = {"model": "m", "short_side": "480..1080", "crop": 604, "crops": 4, "crop_seed": 3}


def problems_of(kind: type[Settings], recipe: dict[str, Any], overrides: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(kind, recipe, overrides)
    return caught.value.message


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_resolves(name: str) -> None:
    recipe = load_recipe(name)
    if recipe["kind"] == "stage":
        settings = resolve(KINDS[recipe["stage"]], recipe, {})
        written = settings.model_dump(mode="json")
        for key, value in recipe.items():
            if key == "crop":
                value = [int(side) for side in f"{value}x{value}".split("x")[:2]]
            assert written[key] == value


def test_shipped_recipes_are_found() -> None:
    assert {"extract", "probe"} <= set(recipe_names())
    assert (shipped("pipelines") / "extract.toml").is_file()


def test_recipe_by_path_is_the_file_of_that_path(tmp_path: Path) -> None:
    (tmp_path / "extract.toml").write_text('stage = "other"\n')
    assert load_recipe(str(tmp_path / "extract.toml")) == {"stage": "other"}
    assert load_recipe("extract")["stage"] == "extract"


def test_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'extrct' is not shipped; nearest: extract") as caught:
        load_recipe("extrct")
    assert caught.value.run == "fcache recipes"
    assert caught.value.exit_code == 2


def test_unreadable_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml' does not exist"):
        read_toml(tmp_path / "absent.toml")
    for data in (b"a = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(data)
        with pytest.raises(ConfigError, match=r"bad\.toml' is not a readable TOML file"):
            read_toml(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="is not a readable TOML file"):
        read_toml(tmp_path)


def test_words_divide_into_plain_words_and_overrides() -> None:
    words = ["videos", "fps=2", "a.b=c=d", "--flag=3", "/x/y=z", "=3", "fps=4", "weights="]
    assert split_overrides(words) == (
        ["videos", "--flag=3", "/x/y=z", "=3"],
        {"fps": "4", "a.b": "c=d", "weights": ""},
    )


def test_existing_path_is_a_plain_word_even_with_an_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip=1").mkdir()
    assert split_overrides(["clip=1", "clip=2"]) == (["clip=1"], {"clip": "2"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("2.5", 2.5),
        ("2e-3", 2e-3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"a b"', "a b"),
        ("none", None),
        ("None", None),
        ("", None),
        ("480x864", "480x864"),
        ("plain words", "plain words"),
        ("1\nb = 2", 1),
    ],
)
def test_override_text_reads_as_toml_or_as_text(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_override_wins_over_the_recipe() -> None:
    settings = resolve(ExtractConfig, {**MODEL, "stride": 3}, {"stride": "2", "dtype": "bfloat16"})
    assert (settings.stride, settings.dtype) == (2, "bfloat16")


def test_override_replaces_what_it_stands_in_for() -> None:
    recipe = {**MODEL, "long_side_max": 1333, "stride": 4}
    by_size = resolve(ExtractConfig, recipe, {"size": "480x864"})
    assert (by_size.size, by_size.short_side, by_size.long_side_max) == ((480, 864), None, None)
    by_rate = resolve(ExtractConfig, recipe, {"fps": "2"})
    assert (by_rate.fps, by_rate.stride) == (2.0, 1)
    back = resolve(ExtractConfig, {"model": "m", "size": [480, 864]}, {"short_side": "360"})
    assert (back.size, back.short_side) == (None, 360)


@pytest.mark.parametrize("words", [{"stride": "2", "fps": "3"}, {"size": "9x9", "short_side": "9"}])
def test_two_overrides_that_contradict_are_refused(words: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="one of"):
        resolve(ExtractConfig, MODEL, words)


def test_a_newer_layer_drops_what_its_keys_stand_in_for() -> None:
    sampled = layered(ExtractConfig, {**MODEL, "stride": 2}, {"fps": 3.0})
    assert "stride" not in sampled
    assert sampled["fps"] == 3.0


def test_text_settings_keep_text_that_looks_like_a_number() -> None:
    settings = resolve(ExtractConfig, MODEL, {"weights": "123", "split": "1", "patch": "14"})
    assert (settings.weights, settings.split, settings.patch) == ("123", "1", 14)


def test_a_selection_is_given_as_an_inline_table() -> None:
    settings = resolve(ProbeConfig, load_recipe("probe"), {"selection": "{fps=5.0}"})
    assert settings.selection == {"fps": 5.0}


def test_none_removes_a_value() -> None:
    settings = resolve(ExtractConfig, {**MODEL, "long_side_max": 1333}, {"long_side_max": "none"})
    assert settings.long_side_max is None
    assert resolve(ProbeConfig, load_recipe("probe"), {"labels": "none"}).labels is None


def test_blocks_read_as_a_list() -> None:
    assert resolve(ExtractConfig, MODEL, {"blocks": "[2, 5, 8, 11]"}).blocks == (2, 5, 8, 11)


def test_all_wrong_keys_and_values_are_shown_together() -> None:
    text = problems_of(ExtractConfig, MODEL, {"stirde": "2", "batch": "3", "workers": "-1"})
    assert "'stirde' is not a setting; nearest: stride" in text
    assert "batch=3: " in text
    assert "workers=-1: " in text


def test_missing_value_says_how_to_give_it() -> None:
    assert "'model' is needed: give model=..." in problems_of(ExtractConfig, {}, {})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"size": "480"}, "'480' is not HEIGHTxWIDTH, for example 480x864"),
        ({"size": "0x10"}, "size=0x10 has an empty side"),
        ({"short_side": "none"}, "give short_side=N or size=HEIGHTxWIDTH"),
        ({"long_side_max": "100"}, "long_side_max=100 is below short_side=720"),
        ({"fps": "2", "stride": "2"}, "both choose frames"),
        ({"start": "3", "end": "2"}, "end=2.0 is not after start=3.0"),
        ({"dtype": "int3"}, "dtype=int3: "),
        ({"flip": "perhaps"}, "flip=perhaps: "),
        ({"short_side": "tall"}, "short_side=tall: 'tall' is not a number of pixels, or LOW..HIGH"),
        ({"short_side": "480.."}, "'480..' is not a number of pixels"),
        ({"short_side": "0"}, "'0' is not a number of pixels"),
        ({"short_side": "480..1080"}, "short_side=480..1080 is a range, from which only crop="),
        ({"short_side": "9..8", "crop": "604"}, "'9..8' is not a range of sides; expected LOW"),
        ({"short_side": "0..8", "crop": "604"}, "'0..8' is not a range of sides; expected LOW"),
        (
            {"short_side": "480..1080", "crop": "604", "long_side_max": "1000"},
            "long_side_max=1000 is below short_side=480..1080",
        ),
        ({"crop": "big"}, "'big' is not SIDE or HEIGHTxWIDTH, for example 604 or 630x1120"),
        ({"crop": "0x32"}, "crop=0x32 has an empty side"),
        ({"crop": "604", "flip": "true"}, "flip=true has no meaning with crop=604x604"),
        ({"crop": "604", "size": "480x864"}, "crop=604x604 is cut from a frame resized by short"),
        ({"crop": "604", "short_side": "none"}, "give short_side=N or short_side=LOW..HIGH with"),
        (
            {"crop": "588x604", "patch": "14"},
            "604 is not a multiple of 28, which patch=14 needs; nearest: 588, 616",
        ),
        ({"crop": "20", "patch": "14"}, "nearest: 28"),
        ({"crops": "4"}, "crops=4 has no meaning without crop="),
        ({"crop": "604", "crops": "0"}, "crops=0: "),
        ({"crop_seed": "4"}, "crop_seed=4 has no meaning without crop="),
    ],
)
def test_impossible_combinations_are_explained(overrides: dict[str, str], expected: str) -> None:
    assert expected in problems_of(ExtractConfig, MODEL, overrides)


def test_parts_of_an_extraction_hold_their_own_settings() -> None:
    settings = resolve(ExtractConfig, MODEL, {"fps": "1.5", "flip": "true"})
    assert settings.selection == Selection(fps=1.5)
    assert settings.geometry == ViewGeometry(short_side=720, flip=True)
    assert settings.backbone.model == MODEL["model"]


def test_a_crop_is_a_square_or_height_by_width() -> None:
    for written, crop in (("604", (604, 604)), ("630x1120", (630, 1120)), (" 8 X 9 ", (8, 9))):
        assert resolve(ExtractConfig, MODEL, {"crop": written}).geometry.crop == crop
    for written, crop in ((604, (604, 604)), ([630, 1120], (630, 1120)), ("840", (840, 840))):
        assert resolve(ExtractConfig, {**MODEL, "crop": written}, {}).crop == crop
    assert resolve(ExtractConfig, MODEL, {"crop": "588x616", "patch": "14"}).crop == (588, 616)


def test_a_range_of_sides_reads_and_prints_alike() -> None:
    settings = resolve(ExtractConfig, MODEL, {"crop": "604", "short_side": "480..1080"})
    assert settings.short_side == settings.geometry.short_side == SideRange(480, 1080)
    assert settings.model_dump(mode="json")["short_side"] == "480..1080"
    assert settings.geometry.identity()["short_side"] == "480..1080"
    assert resolve(ExtractConfig, CROPS, {}).short_side == SideRange(480, 1080)
    # A range of one side is that side, and the same view.
    assert resolve(ExtractConfig, MODEL, {"short_side": "720..720"}).short_side == 720


def test_a_crop_stands_in_for_a_size_and_a_flip() -> None:
    older = {"model": "m", "size": [480, 864], "flip": True}
    cropped = resolve(ExtractConfig, older, {"crop": "604", "short_side": "480..1080"})
    assert (cropped.size, cropped.flip, cropped.crop) == (None, False, (604, 604))
    whole = resolve(ExtractConfig, CROPS, {"size": "480x864"})
    assert (whole.crop, whole.crops, whole.crop_seed, whole.short_side) == (None, 1, 0, None)


def test_crop_none_takes_along_what_only_crops_have() -> None:
    whole = resolve(ExtractConfig, CROPS, {"crop": "none", "short_side": "720"})
    assert whole == resolve(ExtractConfig, {"model": "m", "short_side": 720}, {})
    assert "is a range" in problems_of(ExtractConfig, CROPS, {"crop": "none"})


def test_none_stands_in_for_nothing() -> None:
    older = {"model": "m", "size": [480, 864], "flip": True, "stride": 4}
    words = {"crop": "none", "short_side": "none", "fps": "none"}
    assert resolve(ExtractConfig, older, words) == resolve(ExtractConfig, older, {})


# Keys of caches that exist: they must never change.
@pytest.mark.parametrize(
    ("view", "key"),
    [
        ({"short_side": 720, "long_side_max": 1333}, "ded3adc2cf3c2bea"),
        ({"size": "480x864"}, "924756b36799b310"),
        ({"short_side": 480, "patch": 14, "flip": True}, "d2885356b6ab5a70"),
    ],
)
def test_crop_settings_do_not_enter_the_identity_of_a_full_view(
    view: dict[str, Any], key: str
) -> None:
    identity = ViewGeometry(**view).identity()
    assert list(identity) == ["short_side", "long_side_max", "size", "patch", "flip"]
    assert view_key({"view": identity}) == key


def test_crop_and_seed_are_identity_and_the_number_of_draws_is_not() -> None:
    identities = [
        resolve(ExtractConfig, CROPS, words).geometry.identity()
        for words in ({}, {"crops": "8"}, {"crop_seed": "4"}, {"crop": "608"}, {"patch": "16"})
    ]
    assert identities[0] == identities[1] == identities[4]
    assert (identities[0]["crop"], identities[0]["crop_seed"]) == ([604, 604], 3)
    assert len({view_key(identity) for identity in identities}) == 3


@pytest.mark.parametrize(
    "words",
    [
        {"size": "480x864", "blocks": "[1, 2, 3, 4]"},
        {"crop": "630x1120", "short_side": "480..1080", "crops": "4", "crop_seed": "9"},
    ],
)
def test_settings_survive_a_round_trip_through_toml_values(words: dict[str, str]) -> None:
    settings = resolve(ExtractConfig, MODEL, words)
    table = settings.model_dump(mode="json", exclude_none=True)
    assert resolve(ExtractConfig, table, {}) == settings
    assert ExtractConfig.model_validate_json(settings.model_dump_json()) == settings
    assert ExtractConfig(**settings.model_dump()) == settings


def test_settings_cannot_be_changed() -> None:
    settings = resolve(ExtractConfig, MODEL, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.stride = 2  # type: ignore[misc]


def test_recipe_files_are_plain_toml() -> None:
    for name in recipe_names():
        text = (shipped("pipelines") / f"{name}.toml").read_text(encoding="utf-8")
        assert tomllib.loads(text)["kind"] in {"stage", "chain"}
