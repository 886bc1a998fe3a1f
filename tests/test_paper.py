"""``docs/paper.md`` names only settings that exist, with values they take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fcache.config import ExtractConfig, SegmenterConfig, load_recipe, recipe_names, resolve

# What settings of a kind have no meaning without.
NEEDED = {
    "mrfp_": {"adapter": "comer"},
    "backbone.": {
        "source": "live",
        "adapter": "none",
        "checkpointing": "false",
        "backbone.trainable": "true",
    },
    "val_extract.": {"source": "live", "val_extract.model": "resnet50"},
    "extract.": {
        "source": "live",
        "extract.model": "resnet50",
        "extract.crop": "604",
        "extract.short_side": "480..1080",
    },
}
PAPER = Path(__file__).parents[1] / "docs" / "paper.md"


def told() -> list[str]:
    """Every code span that is made of settings, less the words that show what one looks like."""
    spans = re.findall(r"`([^`]+)`", PAPER.read_text(encoding="utf-8"))
    found = [span for span in spans if re.fullmatch(r"([\w.]+=\S+ ?)+", span)]
    return sorted({span for span in found if span != "key=value" and "..." not in span})


@pytest.mark.parametrize("span", told())
def test_a_setting_in_the_paper_page_is_one(span) -> None:
    words = dict(word.split("=", 1) for word in span.split())
    if "stage" in words:
        assert words == {"stage": "segmenter"}
        return
    if {key.partition(".")[0] for key in words} <= SegmenterConfig.model_fields.keys():
        recipe = load_recipe("segmenter_vipseg")
        usual: dict[str, str] = {}
        for start, needed in NEEDED.items():
            usual |= needed if any(key.startswith(start) for key in words) else {}
        resolve(SegmenterConfig, recipe, {**usual, **words})
        return
    drawn = words.keys() & {"crop", "crops"} or ".." in words.get("short_side", "")
    views = {"crop": "604", "short_side": "480..1080"} if drawn else {}
    resolve(ExtractConfig, load_recipe("extract"), {**views, **words})


def test_recipes_the_paper_page_names_are_shipped() -> None:
    named = set(re.findall(r"`(segmenter_\w+|camvid_\w+)`", PAPER.read_text(encoding="utf-8")))
    assert named
    assert named <= set(recipe_names())
