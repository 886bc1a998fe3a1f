"""Recipes, overrides and settings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fcache.config import (
    ExtractConfig,
    ProbeConfig,
    Selection,
    Settings,
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

KINDS: dict[str, type[Settings]] = {"extract": ExtractConfig, "probe": ProbeConfig}
MODEL = {"model": "vit_small_patch14_dinov2", "short_side": 720}


def problems_of(kind: type[Settings], recipe: dict[str, Any], overrides: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(kind, recipe, overrides)
    return caught.value.message


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_resolves(name: str) -> None:
    recipe = load_recipe(name)
    if recipe["kind"] == "stage":
        settings = resolve(KINDS[recipe["stage"]], recipe, {})
        for key, value in recipe.items():
            assert getattr(settings, key) == value


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
    ],
)
def test_impossible_combinations_are_explained(overrides: dict[str, str], expected: str) -> None:
    assert expected in problems_of(ExtractConfig, MODEL, overrides)


def test_parts_of_an_extraction_hold_their_own_settings() -> None:
    settings = resolve(ExtractConfig, MODEL, {"fps": "1.5", "flip": "true"})
    assert settings.selection == Selection(fps=1.5)
    assert settings.geometry == ViewGeometry(short_side=720, flip=True)
    assert settings.backbone.model == MODEL["model"]


def test_settings_survive_a_round_trip_through_toml_values() -> None:
    settings = resolve(ExtractConfig, MODEL, {"size": "480x864", "blocks": "[1, 2, 3, 4]"})
    table = settings.model_dump(mode="json", exclude_none=True)
    assert resolve(ExtractConfig, table, {}) == settings


def test_settings_cannot_be_changed() -> None:
    settings = resolve(ExtractConfig, MODEL, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.stride = 2  # type: ignore[misc]


def test_recipe_files_are_plain_toml() -> None:
    for name in recipe_names():
        text = (shipped("pipelines") / f"{name}.toml").read_text(encoding="utf-8")
        assert tomllib.loads(text)["kind"] in {"stage", "chain"}
