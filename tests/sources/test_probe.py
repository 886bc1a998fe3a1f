from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.sources.decode import decode
from fcache.sources.probe import SourceFacts, estimate_frames, probe_source
from tests.sources.media import encode, moving_frames


def test_facts_of_a_video_a_folder_and_an_image(tmp_path):
    frames = moving_frames(12)
    video = encode(tmp_path / "v.mp4", frames)
    assert probe_source(video, "video") == SourceFacts(96, 128, 12, 24.0, "pyav")
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, rgb in enumerate(frames[:3]):
        Image.fromarray(rgb).save(folder / f"{index}.png")
    assert probe_source(folder, "frames") == SourceFacts(96, 128, 3, None, "pillow")
    assert probe_source(folder / "0.png", "image") == SourceFacts(96, 128, 1, None, "pillow")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty: zero bytes"),
        (b"hello, this is no video at all\n" * 9, "not a video"),
        (bytes(5000), "not a video"),
        (b"\x00\x00\x00\x10ftypisom\x00\x00\x02\x00", "no 'moov' box"),
    ],
)
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v"])
def test_reasons_of_what_is_no_video(tmp_path, content, reason, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        probe_source(path, "video")
    assert reason in str(caught.value)


def test_a_text_file_is_not_drawn_as_a_video(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello\n" * 50)
    with pytest.raises(SourceError, match="not a video"):
        probe_source(path, "video")


def test_missing_files_and_folders_say_so(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        probe_source(tmp_path / "absent.mp4", "video")
    with pytest.raises(SourceError, match="it is a folder"):
        probe_source(tmp_path, "video")


def test_a_sound_file_without_pictures_has_no_video_stream(tmp_path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux([*stream.encode(silence), *stream.encode(None)])
    with pytest.raises(SourceError, match="no video stream"):
        probe_source(path, "video")


@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"stride": 5},
        {"stride": 100},
        {"fps": 6},
        {"fps": 100},
        {"fps": 6, "start": 0.25},
        {"start": 0.25, "end": 0.75},
        {"max_frames": 4},
        {"fps": 0.01},
    ],
)
def test_estimate_is_what_decoding_takes(tmp_path, selection):
    video = encode(tmp_path / "v.mp4", moving_frames(24))
    chosen = Selection(**selection)
    taken = len(list(decode(video, "video", chosen, wanted=lambda k: False)))
    assert estimate_frames(probe_source(video, "video"), chosen) == taken


def test_estimate_is_at_least_one():
    unknown = SourceFacts(10, 10, None, None, "pyav")
    assert estimate_frames(unknown, Selection()) == 1
    short = SourceFacts(10, 10, 5, 25.0, "pyav")
    assert estimate_frames(short, Selection(start=60.0)) == 1
