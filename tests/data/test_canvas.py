"""Labels on the canvas: one step of nearest-neighbour, windows that are parts of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcache.data.canvas import label_on_canvas
from fcache.store.cache import VideoFrames
from tests.data.clips import Made, Placed, blocks, by_pillow, make_view

PLACED = {
    "same": Placed(),
    "smaller": Placed(resize=(33, 55)),
    "larger": Placed(resize=(77, 128)),
    "crop": Placed(resize=(77, 128), crop=(13, 29, 50, 64)),
    "flipped": Placed(resize=(77, 128), crop=(0, 31, 64, 90), flip=True),
    "odd": Placed((53, 97), (71, 131), (7, 11, 64, 64), flip=True),
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoFrames]:
    folder = tmp_path_factory.mktemp("c") / "c"
    view = make_view(folder, {name: Made(1, (placed,)) for name, placed in PLACED.items()})
    return {name: view.frames(name) for name in PLACED}


@pytest.mark.parametrize("scale", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("name", PLACED)
def test_it_is_what_pillow_makes_of_the_whole_label(
    frames: dict[str, VideoFrames], name: str, scale: float
) -> None:
    placed = PLACED[name]
    size = tuple(round(side * scale) for side in placed.source)
    ids = np.random.default_rng(1).integers(0, 1 << 24, size, np.int32)
    assert np.array_equal(
        label_on_canvas(ids, frames[name], "x", fill=0), by_pillow(ids, placed, 0)
    )
    small = (ids % 9).astype(np.uint8)
    assert np.array_equal(label_on_canvas(small, frames[name], "x"), by_pillow(small, placed, 255))


@pytest.mark.parametrize("name", PLACED)
def test_a_window_is_a_part_of_the_whole(frames: dict[str, VideoFrames], name: str) -> None:
    video = frames[name]
    label = blocks(*PLACED[name].source, range(7), 3)
    whole = label_on_canvas(label, video, "x", fill=0)
    for window in ((0, 0, 2, 2), (2, 2, 2, 2), (0, 2, 4, 2)):
        y, x, height, width = (16 * side for side in window)
        part = label_on_canvas(label, video, "x", window=window, fill=0)
        assert np.array_equal(part, whole[y : y + height, x : x + width])


def test_patch_14_has_the_label_at_16_pixels_a_token(tmp_path: Path) -> None:
    placed = Placed((48, 80), (56, 84), (9, 28, 28, 56), flip=True, canvas=(28, 56))
    video = make_view(tmp_path / "c", {"a": Made(1, (placed,))}, "patch14").frames("a")
    label = np.random.default_rng(1).integers(0, 1 << 24, (48, 80), np.int32)
    found = label_on_canvas(label, video, "x", stride=14)
    assert found.shape == (32, 64)
    # Where the centre of each enlarged pixel lies in the source, by fractions.
    for row in range(32):
        for column in range(64):
            y = (9 + (row + 0.5) * 7 / 8) * 48 / 56
            x = (28 + (63 - column + 0.5) * 7 / 8) * 80 / 84
            assert found[row, column] == label[int(y), int(x)]
    part = label_on_canvas(label, video, "x", stride=14, window=(0, 2, 2, 2))
    assert np.array_equal(part, found[:, 32:64])
