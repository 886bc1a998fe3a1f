from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.sources.decode import decode, list_selected
from fcache.sources.probe import probe_source
from tests.sources.media import encode, moving_frames, read_all


@pytest.fixture(scope="module")
def frames():
    return moving_frames(24)


@pytest.fixture(scope="module")
def video(tmp_path_factory, frames) -> Path:
    return encode(tmp_path_factory.mktemp("videos") / "video.mp4", frames)


def indexes(path: Path, **selection) -> list[int]:
    return [frame.source_index for frame in decode(path, "video", Selection(**selection))]


def test_frames_are_the_encoded_ones_in_presentation_order(video, frames):
    decoded = np.stack([frame.rgb for frame in decode(video, "video", Selection())])
    assert decoded.shape == frames.shape
    errors = np.abs(decoded[:, None].astype(int) - frames[None].astype(int)).mean(axis=(2, 3, 4))
    assert np.array_equal(errors.argmin(axis=1), np.arange(24))


def test_selection_reaches_the_video(video):
    assert indexes(video, fps=6) == [0, 4, 8, 12, 16, 20]
    assert indexes(video, stride=7) == [0, 7, 14, 21]
    assert indexes(video, start=0.5, end=0.75) == [12, 13, 14, 15, 16, 17]
    assert indexes(video, max_frames=2) == [0, 1]


def test_selected_frames_carry_their_source_index_time_and_name(video):
    frame = list(decode(video, "video", Selection(stride=12)))[1]
    assert (frame.source_index, frame.pts_us, frame.name) == (12, 500_000, "00012")


def test_unwanted_frames_are_none_and_the_others_are_the_same(video):
    full = list(decode(video, "video", Selection(stride=2)))
    some = list(decode(video, "video", Selection(stride=2), wanted=lambda k: k % 3 == 0))
    assert len(some) == len(full)
    for k, (got, expected) in enumerate(zip(some, full, strict=True)):
        if k % 3:
            assert got is None
        else:
            assert np.array_equal(got.rgb, expected.rgb)
            assert got.name == expected.name


SELECTIONS = [{}, {"stride": 3}, {"fps": 6}, {"max_frames": 7}, {"stride": 2, "max_frames": 5}]


@pytest.mark.parametrize("selection", [*SELECTIONS, {"fps": 12, "start": 0.2, "end": 0.8}])
def test_skipped_video_frames_are_left_out_and_the_others_stay(video, selection):
    full = list(decode(video, "video", Selection(**selection)))
    held = {frame.source_index for frame in full[1::2]} | {1000}
    rest = list(decode(video, "video", Selection(**selection), skip=held.__contains__))
    assert [frame.name for frame in rest] == [frame.name for frame in full[::2]]
    for got, expected in zip(rest, full[::2], strict=True):
        assert np.array_equal(got.rgb, expected.rgb)
        assert got.pts_us == expected.pts_us


def test_positions_count_the_frames_that_are_not_skipped(video):
    asked, offered = [], []

    def skip(source_index):
        offered.append(source_index)
        return source_index in {0, 6, 8}

    def wanted(position):
        asked.append(position)
        return position != 1

    taken = list(decode(video, "video", Selection(stride=2), wanted=wanted, skip=skip))
    assert offered == list(range(0, 24, 2))
    assert asked == list(range(9))
    names = [frame and frame.source_index for frame in taken]
    assert names == [2, None, 10, 12, 14, 16, 18, 20, 22]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_skipping_every_frame_is_no_error(video, tmp_path, selection):
    assert not list(decode(video, "video", Selection(**selection), skip=lambda _: True))
    if "fps" not in selection:
        folder = save_frames(tmp_path / "frames")
        assert not list(decode(folder, "frames", Selection(**selection), skip=lambda _: True))


def test_damage_after_skipped_frames_is_told_as_after_any_sound_ones(tmp_path, frames):
    path = encode(tmp_path / "v.mkv", frames)
    path.write_bytes(path.read_bytes()[:-2000])
    num_sound = len(list(decode(path, "video", Selection(on_error="keep_prefix"))))
    assert 0 < num_sound < 24
    with pytest.raises(SourceError, match=rf"truncated: .*; {num_sound} frames are whole"):
        list(decode(path, "video", Selection(), skip=lambda _: True))
    kept = Selection(on_error="keep_prefix")
    assert not list(decode(path, "video", kept, skip=lambda _: True))
    late = list(decode(path, "video", kept, skip=lambda index: index < num_sound - 1))
    assert [frame.source_index for frame in late] == [num_sound - 1]


def test_a_selection_that_takes_nothing_is_an_error(video):
    for skip in (None, lambda _: True):
        with pytest.raises(SourceError, match=r"start=9\.0 is after the last frame"):
            list(decode(video, "video", Selection(start=9.0), skip=skip))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_closing_the_iterator_early_closes_the_file(video):
    def num_open() -> int:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sum(link == str(video) for link in links)

    frames = decode(video, "video", Selection())
    next(frames)
    assert num_open() == 1
    frames.close()
    assert num_open() == 0


def test_decoding_is_lazy(tmp_path, frames):
    """Damage at the end is not met while the first frames are read."""
    path = encode(
        tmp_path / "v.mp4", frames, options={"bf": "0"},
        container_options={"movflags": "faststart"},
    )  # fmt: skip
    path.write_bytes(path.read_bytes()[:-10])
    reader = decode(path, "video", Selection())
    assert [next(reader).name for _ in range(10)] == [f"{k:05d}" for k in range(10)]
    with pytest.raises(SourceError, match="truncated"):
        list(reader)


def test_variable_rate_is_kept(tmp_path, frames):
    times = [0, 40, 400, 410, 1000, 1500]
    path = encode(tmp_path / "v.mkv", frames[:6], times_ms=times)
    assert [frame.pts_us // 1000 for frame in decode(path, "video", Selection())] == times
    assert indexes(path, fps=2) == [0, 3, 4, 5]


def test_a_stream_without_timestamps_counts_frames(tmp_path, frames):
    path = encode(tmp_path / "v.h264", frames, rate=25)
    taken = list(decode(path, "video", Selection()))
    assert [frame.source_index for frame in taken] == list(range(24))
    assert [frame.pts_us for frame in taken] == [40_000 * k for k in range(24)]


def test_every_orientation_of_the_display_matrix_is_applied(tmp_path, frames):
    for degrees in (0, 90, 180, -90):
        for hflip in (False, True):
            path = tmp_path / f"{degrees}{hflip}.mp4"
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=24)
                stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv444p"
                stream.options = {"qp": "4"}
                stream.set_display_rotation(degrees, hflip=hflip)
                picture = av.VideoFrame.from_ndarray(frames[0], format="rgb24")
                container.mux([*stream.encode(picture), *stream.encode(None)])
            shown = next(decode(path, "video", Selection())).rgb
            # The matrix turns counter-clockwise, then mirrors left to right.
            expected = np.rot90(frames[0], degrees // 90)
            expected = expected[:, ::-1] if hflip else expected
            assert shown.shape == expected.shape
            assert np.abs(shown.astype(int) - expected).mean() < 4, (degrees, hflip)
            facts = probe_source(path, "video")
            assert (facts.height, facts.width) == shown.shape[:2]


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "num_frames"),
    [
        ("libx264", "mkv", "yuv420p10le", 24),
        ("libx264", "mp4", "yuv444p", 24),
        ("libx264", "mp4", "gray", 24),
        ("libx264rgb", "mkv", "rgb24", 24),
        ("ffv1", "mkv", "yuva420p", 24),
        ("mpeg4", "avi", "yuv420p", 24),
        ("mjpeg", "mov", "yuvj422p", 24),
        ("png", "mov", "rgba64be", 24),
        ("libvpx-vp9", "webm", "yuva420p", 24),
    ],
)
def test_any_pixel_format_becomes_rgb(tmp_path, frames, codec, suffix, pix_fmt, num_frames):
    path = encode(tmp_path / f"v.{suffix}", frames, codec=codec, pix_fmt=pix_fmt)
    decoded = list(decode(path, "video", Selection()))
    assert len(decoded) == num_frames
    expected = frames.astype(float)
    if pix_fmt == "gray":
        expected = np.repeat(expected.mean(axis=3, keepdims=True), 3, axis=3)
    got = np.stack([frame.rgb for frame in decoded])
    assert got.dtype == np.uint8
    assert np.abs(got - expected).mean() < 16


@pytest.mark.parametrize("name", ["a:b.mp4", "100%.mp4", "%03d.mp4", "ünïcödé 空.mp4", "-i.mp4"])
def test_odd_file_names_are_plain_files(video, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(video.read_bytes())
    assert read_all(path) == read_all(video)


def test_a_playlist_is_refused(video, tmp_path):
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n")
    with pytest.raises(SourceError, match=r"other files|not a video"):
        list(decode(playlist, "video", Selection()))


def test_concurrent_readers_in_threads_do_not_disturb_each_other(video):
    from concurrent.futures import ThreadPoolExecutor

    expected = read_all(video)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_all, [video] * 8)) == [expected] * 8


def save_frames(folder: Path, num: int = 5) -> Path:
    folder.mkdir()
    for index in range(num):
        Image.fromarray(np.full((20, 30, 3), 10 * index, np.uint8)).save(folder / f"{index}.png")
    return folder


def test_a_folder_gives_its_frames_by_name(tmp_path):
    folder = save_frames(tmp_path / "frames", 12)
    taken = list(decode(folder, "frames", Selection(stride=5)))
    assert [(f.name, f.source_index, f.pts_us) for f in taken] == [
        ("0", 0, None),
        ("5", 5, None),
        ("10", 10, None),
    ]
    assert [f.rgb[0, 0, 0] for f in taken] == [0, 50, 100]


def test_unwanted_images_are_not_opened(tmp_path):
    folder = save_frames(tmp_path / "frames")
    (folder / "2.png").write_bytes(b"not an image")
    taken = list(decode(folder, "frames", Selection(), wanted=lambda k: k != 2))
    assert [frame and frame.name for frame in taken] == ["0", "1", None, "3", "4"]


@pytest.mark.parametrize("selection", [one for one in SELECTIONS if "fps" not in one])
def test_skipped_images_are_not_opened_and_the_others_stay(tmp_path, selection):
    folder = save_frames(tmp_path / "frames", 12)
    full = list(decode(folder, "frames", Selection(**selection)))
    held = {frame.source_index for frame in full[1::2]}
    for index in held:
        (folder / f"{index}.png").write_bytes(b"not an image")
    rest = list(decode(folder, "frames", Selection(**selection), skip=held.__contains__))
    assert [(f.name, f.rgb[0, 0, 0]) for f in rest] == [(f.name, f.rgb[0, 0, 0]) for f in full[::2]]


def test_a_skipped_first_image_still_sets_the_size(tmp_path):
    folder = save_frames(tmp_path / "frames")
    Image.new("RGB", (31, 20)).save(folder / "0.png")
    with pytest.raises(SourceError, match=r"frame 1 \('1.png'\) is 30x20.*was 31x20"):
        list(decode(folder, "frames", Selection(), skip=lambda index: index == 0))


@pytest.mark.parametrize("selection", [one for one in SELECTIONS if "fps" not in one])
def test_selected_frames_are_listed_without_opening_one(tmp_path, selection):
    folder = save_frames(tmp_path / "frames", 12)
    taken = [(f.source_index, f.name) for f in decode(folder, "frames", Selection(**selection))]
    for path in folder.iterdir():
        path.write_bytes(b"not an image")
    assert list_selected(folder, "frames", Selection(**selection)) == taken
    assert list_selected(folder / "3.png", "image", Selection(**selection)) == [(0, "3")]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selected_pictures_of_a_video_are_listed(video, selection):
    taken = [(f.source_index, f.name) for f in decode(video, "video", Selection(**selection))]
    assert list_selected(video, "video", Selection(**selection)) == taken


def test_a_list_of_selected_frames_needs_no_clock_and_a_folder(tmp_path):
    with pytest.raises(SourceError, match=r"fps= cannot be applied.*use stride="):
        list_selected(tmp_path, "frames", Selection(fps=1))
    with pytest.raises(SourceError, match="no frames"):
        list_selected(tmp_path, "frames", Selection())


def test_a_list_of_selected_frames_ends_as_decoding_does(video, frames, tmp_path):
    with pytest.raises(SourceError, match="no frame is selected: start=100"):
        list_selected(video, "video", Selection(fps=4, start=100))
    torn = encode(tmp_path / "v.mkv", frames)
    torn.write_bytes(torn.read_bytes()[:-2000])
    with pytest.raises(SourceError, match="truncated"):
        list_selected(torn, "video", Selection())
    kept = Selection(on_error="keep_prefix")
    taken = [(f.source_index, f.name) for f in decode(torn, "video", kept)]
    assert list_selected(torn, "video", kept) == taken != []


def test_a_broken_frame_is_named_after_the_sound_ones(tmp_path):
    folder = save_frames(tmp_path / "frames")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    names = []
    with pytest.raises(SourceError, match=r"'3\.png' is damaged"):
        names.extend(f.name for f in decode(folder, "frames", Selection()))
    kept = decode(folder, "frames", Selection(on_error="keep_prefix"))
    assert [frame.name for frame in kept] == ["0", "1", "2"]


def test_a_folder_of_two_sizes_is_refused_even_on_resume(tmp_path):
    folder = save_frames(tmp_path / "frames")
    Image.new("RGB", (31, 20)).save(folder / "4.png")
    for wanted in (None, lambda k: k == 4):
        with pytest.raises(SourceError, match=r"frame 4 \('4.png'\) is 31x20.*was 30x20"):
            list(decode(folder, "frames", Selection(), wanted=wanted))


def test_an_image_is_one_frame(tmp_path):
    Image.new("RGB", (7, 5), (1, 2, 3)).save(tmp_path / "cat.01.png")
    (frame,) = decode(tmp_path / "cat.01.png", "image", Selection())
    assert (frame.name, frame.pts_us, frame.rgb.shape) == ("cat.01", None, (5, 7, 3))
    assert frame.rgb[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["frames", "image"])
def test_times_on_images_point_to_stride(tmp_path, kind):
    with pytest.raises(SourceError, match=r"fps= cannot be applied.*use stride="):
        list(decode(tmp_path, kind, Selection(fps=1)))
