"""Overlays: colours where the labels are, red where the prediction is wrong."""

import numpy as np
import pytest

from fcache.manifest import Category
from fcache.viz.overlay import (
    VOID,
    WRONG,
    Comparison,
    comparison_sheet,
    paint_error,
    paint_label,
)

CATEGORIES = (
    Category(id=10, name="road", isthing=False, color=(200, 0, 0)),
    Category(id=20, name="sky", isthing=False, color=(0, 0, 200)),
    Category(id=30, name="dog", isthing=True, color=(0, 200, 0)),
)
COLORS = [category.color for category in CATEGORIES]
FRAME = np.full((40, 60, 3), 100, np.uint8)
LABEL = np.zeros((40, 60), np.uint8)
LABEL[:, 20:] = 1
LABEL[:, 40:] = 255


def test_colours_are_mixed_inside_and_outlines_follow_the_borders():
    painted = paint_label(FRAME, LABEL, COLORS, share=0.5)
    assert painted[5, 5].tolist() == [150, 50, 50]
    assert painted[5, 30].tolist() == [50, 50, 150]
    assert painted[:, 19].min(axis=1).tolist() == [191] * 40  # a pale red line
    assert (painted[:, 20] == painted[:, 30]).all()


def test_void_is_hatched_and_never_a_category_colour():
    painted = paint_label(FRAME, LABEL, COLORS)[:, 41:].astype(int)
    assert len(np.unique(painted)) == 2
    assert (painted.max(-1) == painted.min(-1)).all()


def test_error_is_red_only_where_a_labelled_pixel_is_wrong():
    prediction = LABEL.copy()
    prediction[10:20, 10:50] = 2
    painted = paint_error(FRAME, LABEL, prediction, len(COLORS)).astype(int)
    red = painted[..., 0] - painted[..., 1] > 60
    wanted = (LABEL != 255) & (prediction != LABEL)
    assert np.array_equal(red, wanted)


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="expected one size"):
        paint_label(FRAME, LABEL[:-1], COLORS)
    with pytest.raises(ValueError, match="nothing to compare"):
        comparison_sheet([], CATEGORIES)


def test_sheet_shows_four_tiles_and_a_legend_of_what_occurs():
    page = comparison_sheet([Comparison(FRAME, LABEL, LABEL, "a")], CATEGORIES, tile_width=120)
    pixels = np.array(page)
    assert page.size[0] == 20 + 4 * 120 + 3 * 6
    legend = {tuple(pixel) for pixel in pixels[-40:].reshape(-1, 3).tolist()}
    assert {COLORS[0], COLORS[1], WRONG, VOID} <= legend
    assert COLORS[2] not in legend
