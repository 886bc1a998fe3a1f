"""The clips of every step: a pure function of (seed, step)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from fcache.data.sampling import ClipRequest, ClipSampler, ClipsInOrder, FrameSampling
from fcache.data.videos import ClipVideo, clip_videos
from fcache.data.windows import TokenWindows
from fcache.errors import ConfigError
from tests.data.clips import Made, Placed, label_everything, make_view, single_frames

WIDE, TALL, SQUARE = Placed(), Placed((80, 48), (80, 48)), Placed(resize=(64, 107))
VIDEOS = {
    **{f"w{k}": Made(4 + k) for k in range(5)},
    **{f"t{k}": Made(3, (TALL,)) for k in range(2)},
}
CROPS = {f"v{k}": Made(3, (WIDE, SQUARE, TALL), crops=True) for k in range(5)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[ClipVideo]:
    """Seven videos of two geometries."""
    folder = tmp_path_factory.mktemp("full")
    return clip_videos(
        make_view(folder / "c", VIDEOS), label_everything(folder / "l", VIDEOS), "panoptic"
    )


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[ClipVideo]:
    """Five videos, each as three crops of different sizes."""
    folder = tmp_path_factory.mktemp("crops")
    return clip_videos(
        make_view(folder / "c", CROPS), label_everything(folder / "l", CROPS), "panoptic"
    )


def sampler_of(videos: list[ClipVideo], **changes) -> ClipSampler:
    settings = {"batch": 4, "micro_batch": 2, "seed": 1, **changes}
    sampling = settings.pop("sampling", FrameSampling(2, 2))
    return ClipSampler(videos, sampling, **settings)


def names(requests: tuple[ClipRequest, ...]) -> list[str]:
    return [request.name for request in requests]


def test_a_step_is_the_same_whatever_was_asked_before(videos: list[ClipVideo]) -> None:
    forward = sampler_of(videos)
    wanted = [names(forward.clips(step)) for step in range(25)]
    assert len({tuple(step) for step in wanted}) == 25
    backward = sampler_of(videos)
    for step in reversed(range(25)):
        assert names(backward.clips(step)) == wanted[step]
    assert names(sampler_of(videos).clips(17)) == wanted[17]


def test_another_seed_gives_another_order(videos: list[ClipVideo]) -> None:
    one, other = sampler_of(videos, seed=1), sampler_of(videos, seed=2)
    assert names(one.clips(0)) != names(other.clips(0))


def test_the_order_of_the_listing_does_not_matter(videos: list[ClipVideo]) -> None:
    one, other = sampler_of(videos), sampler_of(videos[::-1])
    assert [names(one.clips(k)) for k in range(9)] == [names(other.clips(k)) for k in range(9)]


def test_the_order_is_pinned(videos: list[ClipVideo]) -> None:
    # A change of these lines changes every run that is resumed.
    sampler = sampler_of(videos)
    found = [f"{r.epoch} {r.video.video_id} {r.frames}" for k in range(2) for r in sampler.clips(k)]
    assert found == PINNED


def test_every_video_comes_once_an_epoch(videos: list[ClipVideo]) -> None:
    sampler = sampler_of(videos, batch=7, micro_batch=1)
    assert sampler.steps_per_epoch == 1
    orders = []
    for epoch in range(6):
        clips = sampler.clips(epoch)
        orders.append([clip.video.video_id for clip in clips])
        assert sorted(orders[-1]) == sorted(VIDEOS)
        assert {clip.epoch for clip in clips} == {epoch}
    assert len({tuple(order) for order in orders}) > 4


def test_a_micro_batch_has_one_geometry_and_no_clip_is_lost(crops: list[ClipVideo]) -> None:
    sampler = sampler_of(crops, batch=6, micro_batch=3)
    seen: Counter[tuple[str, int]] = Counter()
    for step in range(50):
        clips = sampler.clips(step)
        for first in (0, 3):
            assert len({clip.video.item.bucket for clip in clips[first : first + 3]}) == 1
        seen.update((clip.video.video_id, clip.epoch) for clip in clips)
    assert set(seen.values()) == {1}
    # 300 clips are 60 epochs of 5; of the last ones some wait for others of their geometry.
    whole = [epoch for epoch in range(60) if all((video, epoch) in seen for video in CROPS)]
    assert whole[:50] == list(range(50))


def test_crops_are_drawn_equally_often(crops: list[ClipVideo]) -> None:
    sampler = sampler_of(crops, batch=5, micro_batch=1)
    drawn = Counter(clip.draw for step in range(120) for clip in sampler.clips(step))
    assert set(drawn) == {0, 1, 2}
    assert all(abs(count / 600 - 1 / 3) < 0.06 for count in drawn.values())


def test_a_video_whose_geometry_is_rare_waits_for_itself(videos: list[ClipVideo]) -> None:
    few = [video for video in videos if video.video_id in {"t0", "w0", "w1"}]
    sampler = sampler_of(few, batch=2, micro_batch=2)
    tall = [clips for clips in map(sampler.clips, range(30)) if clips[0].video.video_id == "t0"]
    assert len(tall) in {9, 10}
    assert [clip.epoch for clips in tall for clip in clips] == list(range(2 * len(tall)))


def test_windows_of_one_size_make_canvases_one_geometry(
    videos: list[ClipVideo], tmp_path: Path
) -> None:
    windows = TokenWindows((32, 32), 16)
    sampler = sampler_of(videos, batch=7, micro_batch=7, windows=windows)
    clips = sampler.clips(0)
    assert sorted(clip.video.video_id for clip in clips) == sorted(VIDEOS)
    assert {clip.window[2:] for clip in clips if clip.window} == {(2, 2)}
    assert len({clip.window for step in range(5) for clip in sampler.clips(step)}) > 3


def test_only_labelled_frames_are_drawn(videos: list[ClipVideo]) -> None:
    video = next(video for video in videos if video.video_id == "w4")
    some = dataclasses.replace(video, labelled=((1, 4, 6),))
    sampler = sampler_of(
        [some], batch=1, micro_batch=1, sampling=FrameSampling(3, 1, "consecutive")
    )
    assert sampler.clips(3)[0].frames == (1, 4, 6)
    assert sampler.clips(3)[0].frame_names == ("00001", "00004", "00006")


def test_no_two_clips_of_a_run_are_called_the_same(crops: list[ClipVideo]) -> None:
    sampler = sampler_of(crops)
    found = [name for step in range(40) for name in names(sampler.clips(step))]
    assert len(set(found)) == len(found) == 160


@pytest.mark.parametrize(("batch", "micro_batch"), [(4, 3), (0, 1), (2, 4)])
def test_a_batch_that_micro_batches_do_not_fill_is_refused(
    videos: list[ClipVideo], batch: int, micro_batch: int
) -> None:
    with pytest.raises(ConfigError, match=f"batch={batch} is not filled"):
        sampler_of(videos, batch=batch, micro_batch=micro_batch)


def test_no_video_is_refused() -> None:
    with pytest.raises(ConfigError, match="no video to draw clips from"):
        sampler_of([])


def test_clips_in_order_come_once(videos: list[ClipVideo]) -> None:
    requests = single_frames(videos)
    assert len(requests) == sum(made.num_frames for made in VIDEOS.values())
    clips = ClipsInOrder(requests, batch=4)
    assert clips.num_steps == 9
    found = [request for step in range(clips.num_steps) for request in clips.clips(step)]
    assert found == requests


PINNED = [
    "0 w0 (1, 3)",
    "0 w2 (3, 5)",
    "0 w3 (0, 1)",
    "0 w4 (1, 3)",
    "0 t0 (0, 2)",
    "0 t1 (1, 2)",
    "0 w1 (2, 3)",
    "1 w1 (3, 4)",
]
