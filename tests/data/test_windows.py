"""Token windows: where they may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcache.data.frame_sampling import Uniform
from fcache.data.windows import TokenWindows
from fcache.errors import ConfigError
from fcache.store.cache import VideoFrames, View
from fcache.store.layout import Bucket
from tests.data.clips import Made, Placed, make_view

LARGE = Placed((100, 150), (100, 150))  # a canvas of 128 x 160
PADDED = Placed((100, 150), (100, 150), canvas=(192, 192))


@pytest.fixture
def view(tmp_path: Path) -> View:
    return make_view(tmp_path / "c", {"a": Made(1, (LARGE,)), "b": Made(1, (PADDED,))})


def drawn(windows: TokenWindows, video: VideoFrames) -> set[tuple[int, int, int, int]]:
    return {windows.draw(video, Uniform(k).below) for k in range(400)}


def test_windows_lie_on_even_tokens_anywhere_on_the_padded_canvas(view: View) -> None:
    found = drawn(TokenWindows.of(view, (64, 96)), view.frames("a"))
    assert {window[2:] for window in found} == {(4, 6)}
    assert {window[0] for window in found} == {0, 2, 4}  # of 8 tokens
    assert {window[1] for window in found} == {0, 2, 4}  # of 10 tokens
    assert len(found) == 9


def test_a_canvas_smaller_than_the_window_is_kept_whole(view: View) -> None:
    assert drawn(TokenWindows.of(view, (608, 64)), view.frames("a")) == {
        (0, x, 8, 4) for x in (0, 2, 4, 6)
    }


def test_a_window_always_holds_part_of_the_frame(view: View) -> None:
    found = drawn(TokenWindows.of(view, (32, 32)), view.frames("b"))
    assert {window[0] * 16 for window in found} == {0, 32, 64, 96}  # the frame ends at 100
    assert {window[1] * 16 for window in found} == {0, 32, 64, 96, 128}  # and at 150


def test_windows_of_patch_14_have_as_many_tokens_and_fewer_pixels() -> None:
    windows = TokenWindows((608, 608), 14)
    assert windows.size(Bucket(560, 1064)) == (38, 38)
    assert windows.size(Bucket(504, 504)) == (36, 36)


def test_windows_of_a_pyramid_count_coarse_tokens(tmp_path: Path) -> None:
    view = make_view(tmp_path / "c", {"a": Made(1, (LARGE,))}, "pyramid")
    windows = TokenWindows.of(view, (64, 96))
    found = drawn(windows, view.frames("a"))
    assert found == {(y, x, 2, 3) for y in range(3) for x in range(3)}
    for window in found:
        assert view.read("a", window=window).pixels.shape == (1, 64, 96, 3)


@pytest.mark.parametrize(("crop", "near"), [((604, 608), "576, 608"), ((608, 16), "nearest: 32")])
def test_a_crop_that_is_no_multiple_of_32_names_its_neighbours(
    view: View, crop: tuple[int, int], near: str
) -> None:
    with pytest.raises(ConfigError, match=near):
        TokenWindows.of(view, crop)


def test_windows_of_a_view_of_crops_are_refused(view: View) -> None:
    view.identity["view"]["crop"] = [604, 604]
    with pytest.raises(ConfigError, match="is of crops; leave crop= out"):
        TokenWindows.of(view, (608, 608))
