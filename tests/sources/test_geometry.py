from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fcache.config import ViewGeometry
from fcache.sources.geometry import Placement, draw, draw_crop, place

PAPER = ViewGeometry(short_side="480..1080", crop=604)
NUM_IMAGES = 118_000


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
        # Above 1344 px the multiples are 64, above 2688 px 128.
        ((1080, 1920), {"short_side": 1080}, (1080, 1920), (1088, 1920)),
        ((2160, 3840), {"short_side": 2160}, (2160, 3840), (2176, 3840)),
        ((2161, 3841), {"short_side": 2161}, (2161, 3841), (2176, 3968)),
        ((720, 1680), {"short_side": 720}, (720, 1680), (736, 1728)),
        ((9, 9), {"size": (1344, 1345)}, (1344, 1345), (1344, 1408)),
        ((9, 9), {"size": (2688, 2689)}, (2688, 2689), (2688, 2816)),
        # 1920 / 56 = 34.29 -> 1904; 2700 / 112 = 24.1 -> 2688.
        ((9, 9), {"size": (1358, 1920), "patch": 14}, (1344, 1904), (1344, 1904)),
        ((9, 9), {"size": (1372, 2700), "patch": 14}, (1400, 2688), (1400, 2688)),
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


@pytest.mark.parametrize(("patch", "fine", "octave"), [(16, 42, 21), (14, 48, 24)])
def test_canvas_sides_are_few_and_hardly_padded(patch, fine, octave):
    sides: set[int] = set()
    num_octaves = 0
    for side in range(1, 1344 * 8 + 1):
        placement = place(1, 1, ViewGeometry(size=(side, 1), patch=patch))
        sides.add(placement.canvas_h)
        padding = placement.canvas_h - placement.resize_h
        assert 0 <= padding < (32 if side <= 1344 else 0.05 * side), side
        if side == 1344 * 2**num_octaves:
            assert len(sides) == fine + octave * num_octaves
            assert max(sides) == side  # limits are multiples themselves: a canvas never passes one
            num_octaves += 1
    assert num_octaves == 4


def coco_sizes(rng: np.random.Generator) -> Counter[tuple[int, int]]:
    """Sizes of 118,000 photographs: seven common ones, three in ten anything from 200 to 640."""
    common = [(480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (360, 640), (612, 612)]
    weights = np.array([28, 12, 18, 7, 4, 4, 2]) / 75
    num_common = NUM_IMAGES * 7 // 10
    sizes = [common[i] for i in rng.choice(len(common), num_common, p=weights)]
    sizes += [(h, w) for h, w in rng.integers(200, 641, (NUM_IMAGES - num_common, 2)).tolist()]
    return Counter(sizes)


@pytest.mark.parametrize(
    "view",
    [
        ViewGeometry(short_side=640, long_side_max=1333),
        ViewGeometry(short_side=480),
        ViewGeometry(short_side=640, long_side_max=1333, patch=14),
    ],
)
def test_photographs_of_all_shapes_share_shards_and_waste_little(view):
    canvases: Counter[tuple[int, int]] = Counter()
    valid = total = 0
    for (h, w), count in coco_sizes(np.random.default_rng(0)).items():
        placement = place(h, w, view)
        canvases[placement.canvas_h, placement.canvas_w] += count
        valid += count * placement.crop_h * placement.crop_w
        total += count * placement.canvas_h * placement.canvas_w
    assert sum(canvases.values()) == NUM_IMAGES
    assert len(canvases) < 100
    assert sum(-(-count // 16) for count in canvases.values()) <= 7_500  # 7,375 are the least
    assert valid / total > 0.98


@pytest.mark.parametrize("long_side_max", [None, 1333])
def test_wild_aspect_ratios_make_few_canvases(long_side_max):
    view = ViewGeometry(short_side=480, long_side_max=long_side_max)
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(np.log(16), np.log(16_000), (20_000, 2))).astype(int).tolist()
    canvases = {(at.canvas_h, at.canvas_w) for at in (place(h, w, view) for h, w in sizes)}
    longest = max(max(canvas) for canvas in canvases)
    values = 42 + 21 * int(np.ceil(np.log2(max(1, longest / 1344))))
    assert longest > (400_000 if long_side_max is None else 1300)
    assert len(canvases) <= 2 * values


def crops(num: int, h: int, w: int, view: ViewGeometry = PAPER) -> list[Placement]:
    return [draw_crop(f"video/{i}", k, h, w, view) for i in range(num // 4) for k in range(4)]


def test_a_draw_is_made_of_the_sha256_as_the_module_says():
    view = ViewGeometry(short_side="480..1080", crop="630x1120", crop_seed=7)
    digest = hashlib.sha256("crop:7:3:train/видео".encode()).hexdigest()
    side, flip, y, x = (int(digest[i : i + 16], 16) for i in (0, 16, 32, 48))
    got = draw_crop("train/видео", 3, 720, 1280, view)
    short = 480 + side * 601 // 2**64
    assert got.resize_h == short
    assert got.resize_w == int(short / 720 * 1280 + 0.5)
    assert got.flip is (flip >= 2**63)
    assert (got.crop_h, got.crop_w) == (min(630, got.resize_h), min(1120, got.resize_w))
    assert got.crop_y == y * (got.resize_h - got.crop_h + 1) // 2**64
    assert got.crop_x == x * (got.resize_w - got.crop_w + 1) // 2**64


def test_draws_stay_what_they_are():
    """Caches hold crops drawn by older versions: K more draws must join them."""
    expected = [
        (634, 1127, 16, 247, False),
        (769, 1367, 74, 467, False),
        (859, 1527, 207, 362, False),
        (692, 1230, 13, 287, True),
    ]
    shown = [
        (at.resize_h, at.resize_w, at.crop_y, at.crop_x, at.flip)
        for at in (draw_crop("0_abc", k, 720, 1280, PAPER) for k in range(4))
    ]
    assert shown == expected


def test_every_draw_lies_inside_the_frame_and_on_its_canvas():
    for h, w in ((720, 1280), (480, 854), (1080, 608), (90, 4000), (604, 604), (1, 1)):
        for view in (
            PAPER,
            ViewGeometry(short_side=300, crop=604),
            ViewGeometry(short_side="480..1080", long_side_max=1333, crop="630x1120"),
            ViewGeometry(short_side="480..1080", crop="588x616", patch=14),
        ):
            for at in crops(200, h, w, view):
                assert 0 <= at.crop_y <= at.resize_h - at.crop_h
                assert 0 <= at.crop_x <= at.resize_w - at.crop_w
                assert at.crop_h == min(view.crop[0], at.resize_h)
                assert at.crop_w == min(view.crop[1], at.resize_w)
                multiple = 28 if view.patch == 14 else 32
                assert at.canvas_h % multiple == at.canvas_w % multiple == 0
                limit = 1 if view.patch == 14 else 32
                assert 0 <= at.canvas_h - at.crop_h < limit
                assert 0 <= at.canvas_w - at.crop_w < limit
                assert max(at.resize_h, at.resize_w) <= (view.long_side_max or 10**6)


@pytest.mark.parametrize(
    ("crop", "short_side", "canvas"),
    [(604, 720, (608, 608)), ("630x1120", 720, (640, 1120)), (840, 1080, (864, 864))],
)
def test_canvases_of_the_papers_crops(crop, short_side, canvas):
    at = draw_crop("a", 0, 720, 1280, ViewGeometry(short_side=short_side, crop=crop))
    assert (at.canvas_h, at.canvas_w) == canvas


def test_a_frame_smaller_than_the_crop_is_kept_whole():
    at = draw_crop("a", 0, 300, 500, ViewGeometry(short_side=300, crop="400x333"))
    assert (at.crop_y, at.crop_h, at.crop_w, at.canvas_h, at.canvas_w) == (0, 300, 333, 320, 352)
    assert 0 <= at.crop_x <= 500 - 333


def test_sides_and_flips_are_drawn_evenly():
    drawn = crops(24_040, 1080, 1920)
    sides = Counter(at.resize_h for at in drawn)
    assert set(sides) == set(range(480, 1081))
    # 601 sides of 40 draws each: chi-squared of 600 degrees of freedom, five deviations allowed.
    assert abs(chi_squared(sides, 40) - 600) < 5 * np.sqrt(2 * 600)
    flips = sum(at.flip for at in drawn)
    assert abs(flips - 12_020) < 4 * np.sqrt(24_040 / 4)


def test_every_offset_is_reached_and_evenly():
    view = ViewGeometry(short_side=40, crop="31x31")
    drawn = crops(16_000, 40, 49, view)
    places = Counter((at.crop_y, at.crop_x) for at in drawn)
    assert set(places) == {(y, x) for y in range(10) for x in range(19)}
    assert abs(chi_squared(places, 16_000 / 190) - 189) < 5 * np.sqrt(2 * 189)
    for flip in (False, True):  # what is drawn does not hang together
        rows = Counter(at.crop_y for at in drawn if at.flip is flip)
        assert abs(chi_squared(rows, sum(rows.values()) / 10) - 9) < 5 * np.sqrt(2 * 9)


def chi_squared(counts: Counter, expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts.values())


def test_draws_differ_by_video_by_number_and_by_seed():
    reseeded = PAPER.model_copy(update={"crop_seed": 1})
    drawn = [
        draw_crop(video_id, k, 720, 1280, view)
        for view in (PAPER, reseeded)
        for video_id in ("a", "b", "a:1", "1:a")
        for k in range(12)
    ]
    assert len(set(drawn)) == len(drawn)


def test_a_drawn_canvas_is_the_flipped_crop_of_the_resized_frame():
    rgb = np.random.default_rng(4).integers(1, 256, (60, 100, 3)).astype(np.uint8)
    view = ViewGeometry(short_side="40..80", crop="33x50")
    flips = set()
    for k in range(8):
        at = draw_crop("a", k, 60, 100, view)
        size = (at.resize_w, at.resize_h)
        resized = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        crop = resized[at.crop_y : at.crop_y + 33, at.crop_x : at.crop_x + 50]
        canvas = draw(rgb, at)
        assert canvas.shape == (64, 64, 3)
        assert np.array_equal(canvas[:33, :50], crop[:, ::-1] if at.flip else crop)
        assert not canvas[33:].any()
        assert not canvas[:, 50:].any()
        flips.add(at.flip)
    assert flips == {False, True}


def test_views_and_placements_of_the_other_kind_are_wrong_calls():
    with pytest.raises(ValueError, match="call draw_crop"):
        place(720, 1280, PAPER)
    with pytest.raises(ValueError, match="call place"):
        draw_crop("a", 0, 720, 1280, ViewGeometry(short_side=480))
    with pytest.raises(ValueError, match="0x5"):
        draw_crop("a", 0, 0, 5, PAPER)
