"""Files broken on purpose: each is refused with its reason, or decodes to the sound frames."""

from __future__ import annotations

import random
from pathlib import Path

import av
import pytest

from fcache.config import Selection
from fcache.sources.container import read_outline
from tests.sources.media import encode, media_data, moving_frames, read_all

NUM_FRAMES = 36
FASTSTART = {"movflags": "faststart"}
B_FRAMES = {"bf": "3", "b-pyramid": "normal"}


@pytest.fixture(scope="module")
def frames():
    return moving_frames(NUM_FRAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def sound_mp4(folder, frames) -> Path:
    path = folder / "sound.mp4"
    return encode(path, frames, options=B_FRAMES, container_options=FASTSTART)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99])
def test_truncated_mp4_names_both_counts_and_keeps_a_true_prefix(folder, sound_mp4, share):
    data = sound_mp4.read_bytes()
    start, end = media_data(data)
    path = written(folder, "cut.mp4", data[: start + int((end - start) * share)])
    whole, _ = read_all(sound_mp4)
    prefix, message = read_all(path)
    assert message == (
        f"truncated: the container promises {NUM_FRAMES} frames, the data ends after {len(prefix)}."
    )
    assert prefix == whole[: len(prefix)]
    assert len(prefix) < NUM_FRAMES


def test_one_missing_byte_is_a_truncation(folder, sound_mp4):
    prefix, message = read_all(written(folder, "cut.mp4", sound_mp4.read_bytes()[:-1]))
    assert "truncated" in message
    assert len(prefix) < NUM_FRAMES


def test_truncated_stream_without_b_frames_keeps_every_whole_frame(folder, frames):
    path = encode(
        folder / "p.mp4", frames, options={"bf": "0", "tune": "zerolatency"},
        container_options=FASTSTART,
    )  # fmt: skip
    whole, _ = read_all(path)
    prefix, message = read_all(written(folder, "cut.mp4", path.read_bytes()[:-1]))
    assert message.endswith(f"the data ends after {NUM_FRAMES - 1}.")
    assert prefix == whole[:-1]


def test_cut_exactly_between_two_samples_is_found(folder, frames):
    path = encode(folder / "p.mp4", frames, options={"bf": "0"}, container_options=FASTSTART)
    with av.open(str(path)) as container:
        place = container.streams.video[0].index_entries[20].pos
    prefix, message = read_all(written(folder, "cut.mp4", path.read_bytes()[:place]))
    assert message.startswith("truncated: the container promises 36 frames")
    assert 0 < len(prefix) <= 20


def test_mp4_without_moov_says_so(folder, frames):
    path = encode(folder / "tail.mp4", frames)  # moov at the end
    data = path.read_bytes()
    place = data.index(b"moov") - 4
    _, message = read_all(written(folder, "no_moov.mp4", data[:place]))
    assert "no 'moov' box" in message


def test_a_cut_sound_track_does_not_cost_the_video(folder, sound_mp4):
    """Bytes missing after the last picture (here of a box nobody needs) leave the video whole."""
    data = sound_mp4.read_bytes() + (1000).to_bytes(4, "big") + b"free" + bytes(10)
    path = written(folder, "tail.mp4", data)
    assert read_outline(path).cut
    assert read_all(path) == read_all(sound_mp4)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("avi", "mpeg4")])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_matroska_and_avi_are_found(folder, frames, suffix, codec, share):
    path = encode(folder / f"sound.{suffix}", frames, codec=codec, options={"bf": "0"})
    whole, message = read_all(path)
    assert (len(whole), message) == (NUM_FRAMES, "")
    data = path.read_bytes()
    prefix, message = read_all(written(folder, f"cut.{suffix}", data[: int(len(data) * share)]))
    assert message.startswith("truncated: ")
    assert prefix == whole[: len(prefix)]


def test_flipped_bits_in_h264_are_mostly_refused_and_never_move_frames(folder, sound_mp4):
    """H.264 has no checksum: some flips change pixels unseen, as the module says. No flip may
    lose a frame, and frames handed out before a refusal are the sound ones.
    """
    whole, _ = read_all(sound_mp4)
    num_refused = 0
    for seed in range(60):
        data = bytearray(sound_mp4.read_bytes())
        rng = random.Random(seed)
        data[rng.randrange(*media_data(data))] ^= 1 << rng.randrange(8)
        prefix, message = read_all(written(folder, "flipped.mp4", bytes(data)))
        if message:
            num_refused += 1
            assert message.startswith(("damaged: ", "not a video", "no frames")), message
            assert prefix == whole[: len(prefix)], seed
        else:
            assert [frame[1:] for frame in prefix] == [frame[1:] for frame in whole], seed
    assert num_refused >= 30


def test_lost_h264_packet_is_noticed(folder, sound_mp4):
    """A picture turned into another kind of NAL unit vanishes without an error of the decoder."""
    with av.open(str(sound_mp4)) as container:
        entries = list(container.streams.video[0].index_entries)
    data = bytearray(sound_mp4.read_bytes())
    entry = entries[20]
    data[entry.pos + 4] = 12  # NAL type 12: filler
    prefix, message = read_all(written(folder, "lost.mp4", bytes(data)))
    whole, _ = read_all(sound_mp4)
    assert "1 packets give no picture" in message or "the decoder fails" in message
    assert prefix == whole[: len(prefix)]


def test_broadcast_recording_that_starts_anywhere_is_sound(folder, frames):
    path = encode(folder / "whole.ts", frames, options={"bf": "2", "g": "12"})
    whole, message = read_all(path)
    assert (len(whole), message) == (NUM_FRAMES, "")
    data = path.read_bytes()
    start = len(data) // 188 // 5 * 188
    late, message = read_all(written(folder, "late.ts", data[start:]))
    assert message == ""
    assert [frame[0] for frame in late] == [frame[0] for frame in whole[-len(late) :]]
    assert 12 <= len(late) < NUM_FRAMES


def test_frame_size_change_names_frame_and_both_sizes(folder, frames):
    small = moving_frames(12, 64, 96)
    first = encode(folder / "a.h264", frames[:12], options={"bf": "0"})
    second = encode(folder / "b.h264", small, options={"bf": "0"})
    joined = written(folder, "joined.h264", first.read_bytes() + second.read_bytes())
    prefix, message = read_all(joined)
    assert message == (
        "the size changes: frame 12 is 96x64, the first was 128x96 (width x height)."
    )
    assert len(prefix) == 12


def test_damage_after_the_selection_does_not_matter(folder, sound_mp4):
    data = sound_mp4.read_bytes()
    path = written(folder, "cut.mp4", data[: len(data) * 8 // 10])
    assert len(read_all(path)[0]) > 10
    taken, message = read_all(path, Selection(max_frames=10))
    assert (len(taken), message) == (10, "")
