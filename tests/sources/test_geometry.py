from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fcache.config import ViewGeometry
from fcache.sources.geometry import draw, place


@pytest.mark.parametrize(
    ("source", "view", "resized", "canvas"),
    [
        # The published evaluation sizes of VIPSeg and VSPW.
        ((720, 1280), {"short_side": 720, "long_side_max": 1333}, (720, 1280), (736, 1280)),
        ((480, 853), {"short_side": 720, "long_side_max": 1333}, (720, 1280), (736, 1280)),
        ((1080, 1920), {"short_side": 480}, (480, 853), (480, 864)),
        ((1920, 1080), {"short_side": 480}, (853, 480), (864, 480)),
        # Long side first reached: 300x1000 at short side 720 would be 2400 wide.
        ((300, 1000), {"short_side": 720, "long_side_max": 1333}, (400, 1333), (416, 1344)),
        ((100, 100), {"size": (384, 480)}, (384, 480), (384, 480)),
        ((100, 100), {"size": (33, 1)}, (33, 1), (64, 32)),
        ((1, 4000), {"short_side": 1, "long_side_max": 100}, (1, 100), (32, 128)),
        # 480 -> 480 / 28 = 17.14 -> 476; 853 / 28 = 30.46 -> 840.
        ((1080, 1920), {"short_side": 480, "patch": 14}, (476, 840), (476, 840)),
        ((100, 100), {"size": (41, 42), "patch": 14}, (28, 56), (28, 56)),
        ((100, 100), {"size": (1, 13), "patch": 14}, (28, 28), (28, 28)),
    ],
)
def test_sides_are_those_of_the_published_rule(source, view, resized, canvas):
    placement = place(*source, ViewGeometry(**view))
    assert (placement.resize_h, placement.resize_w) == resized
    assert (placement.canvas_h, placement.canvas_w) == canvas
    assert (placement.source_h, placement.source_w) == source
    crop = (placement.crop_y, placement.crop_x, placement.crop_h, placement.crop_w)
    assert crop == (0, 0, *resized)


def test_sides_equal_detectron2_for_many_sizes():
    def resize_shortest_edge(h: int, w: int, size: int, max_size: int) -> tuple[int, int]:
        scale = size * 1.0 / min(h, w)
        newh, neww = (size, scale * w) if h < w else (scale * h, size)
        if max(newh, neww) > max_size:
            scale = max_size * 1.0 / max(newh, neww)
            newh, neww = newh * scale, neww * scale
        return int(newh + 0.5), int(neww + 0.5)

    rng = np.random.default_rng(0)
    for h, w, size in rng.integers(40, 2200, (3000, 3)).tolist():
        placement = place(h, w, ViewGeometry(short_side=size, long_side_max=size + 613))
        expected = resize_shortest_edge(h, w, size, size + 613)
        assert (placement.resize_h, placement.resize_w) == expected, (h, w, size)


def test_canvas_is_the_pil_bilinear_frame_and_zeros():
    rgb = np.random.default_rng(1).integers(1, 256, (50, 91, 3)).astype(np.uint8)
    placement = place(50, 91, ViewGeometry(short_side=40))
    canvas = draw(rgb, placement)
    assert canvas.shape == (64, 96, 3)
    assert canvas.dtype == np.uint8
    resized = np.asarray(Image.fromarray(rgb).resize((73, 40), Image.Resampling.BILINEAR))
    assert np.array_equal(canvas[:40, :73], resized)
    assert not canvas[40:].any()
    assert not canvas[:, 73:].any()


def test_flip_mirrors_the_frame_and_leaves_the_padding_right():
    rgb = np.random.default_rng(2).integers(1, 256, (40, 73, 3)).astype(np.uint8)
    plain = draw(rgb, place(40, 73, ViewGeometry(short_side=40)))
    flipped = draw(rgb, place(40, 73, ViewGeometry(short_side=40, flip=True)))
    assert np.array_equal(plain[:40, :73], rgb)
    assert np.array_equal(flipped[:40, :73], rgb[:, ::-1])
    assert not flipped[:, 73:].any()


def test_patch_14_fills_the_canvas_in_one_resize():
    rgb = np.random.default_rng(3).integers(1, 256, (60, 100, 3)).astype(np.uint8)
    canvas = draw(rgb, place(60, 100, ViewGeometry(short_side=30, patch=14)))
    expected = Image.fromarray(rgb).resize((56, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(canvas, np.asarray(expected))


def test_draw_refuses_a_frame_the_placement_was_not_made_for():
    placement = place(50, 91, ViewGeometry(short_side=40))
    with pytest.raises(ValueError, match=r"\(91, 50, 3\)"):
        draw(np.zeros((91, 50, 3), np.uint8), placement)
    with pytest.raises(ValueError, match="float32"):
        draw(np.zeros((50, 91, 3), np.float32), placement)


def test_a_frame_with_an_empty_side_is_a_wrong_call():
    with pytest.raises(ValueError, match="0x5"):
        place(0, 5, ViewGeometry(short_side=40))
