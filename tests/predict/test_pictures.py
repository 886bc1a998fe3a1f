"""Maps as PNGs: ids that are colours, palettes, and what a JSON says of segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fcache.data.label_images import read_mask, read_segment_ids
from fcache.manifest import Category, load_manifest
from fcache.models.panoptic import PredictedSegment
from fcache.predict.pictures import SegmentColors, segment_rows, write_categories, write_ids

GREY = (140, 140, 140)
CATEGORIES = (
    Category(id=7, name="car", isthing=True, color=GREY),
    Category(id=3, name="slide", isthing=False, color=GREY),
    Category(id=9, name="sky", isthing=False),
)


def segments(*categories: int) -> list[PredictedSegment]:
    return [
        PredictedSegment(number, category, CATEGORIES[category].isthing, number)
        for number, category in enumerate(categories, 1)
    ]


def test_ids_differ_and_stuff_alone_has_the_very_colour_of_its_category() -> None:
    ids = SegmentColors(CATEGORIES).ids(segments(0, 1, 0, 2, 0)).tolist()
    assert ids[0] == 0
    assert len(set(ids)) == 6
    assert ids[2] == 140 + 256 * 140 + 65536 * 140
    bands = [(number & 255, number >> 8 & 255, number >> 16) for number in (ids[1], ids[3])]
    assert all(abs(band - 140) <= 30 for color in bands for band in color)
    assert ids[4] > 0, "a category without a colour has one of its own"


def test_ids_depend_on_the_segments_alone() -> None:
    colors = SegmentColors(CATEGORIES)
    first = SegmentColors(CATEGORIES).ids(segments(0, 1, 0, 0))
    assert np.array_equal(colors.ids(segments(0, 1, 0, 0)), first)


def test_a_thousand_segments_of_one_category_have_a_thousand_ids() -> None:
    ids = SegmentColors(CATEGORIES).ids(segments(*[0] * 1000))
    assert len(set(ids.tolist())) == 1001


def test_every_category_of_the_shipped_manifests_has_another_id() -> None:
    for name in ("vipseg", "coco_panoptic", "camvid"):
        categories = load_manifest(name).categories
        one_each = [
            PredictedSegment(number, index, category.isthing, index)
            for number, (index, category) in enumerate(enumerate(categories), 1)
        ]
        assert len(set(SegmentColors(categories).ids(one_each).tolist())) == len(categories) + 1


def test_a_panoptic_png_holds_its_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [256, 65536, 0xFFFFFF]], np.int32)
    write_ids(tmp_path / "ids.png", ids)
    assert np.array_equal(read_segment_ids(tmp_path / "ids.png"), ids)


def test_a_semantic_png_holds_the_data_sets_ids_under_their_colours(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    write_categories(tmp_path / "map.png", indices, CATEGORIES)
    assert np.array_equal(read_mask(tmp_path / "map.png"), [[7, 3, 9], [9, 3, 7]])
    shown = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    assert shown[0, 0].tolist() == shown[0, 1].tolist() == [140] * 3
    assert shown[0, 2].any()


def test_rows_say_area_and_box_of_the_segments_that_a_frame_shows() -> None:
    numbers = np.array([[0, 1, 1, 0], [0, 0, 1, 3]], np.int32)
    found = segments(0, 1, 2)
    ids = SegmentColors(CATEGORIES).ids(found)
    assert segment_rows(numbers, found, ids, CATEGORIES) == [
        {"id": ids[1], "category_id": 7, "iscrowd": 0, "area": 3, "bbox": [1, 0, 2, 2]},
        {"id": ids[3], "category_id": 9, "iscrowd": 0, "area": 1, "bbox": [3, 1, 1, 1]},
    ]
