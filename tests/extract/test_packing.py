"""Single images: packed up to sixteen to a shard, each of them its own affair."""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fcache.cache import open_cache
from fcache.errors import InterruptedJobError, NoSpaceError
from fcache.extract import job
from fcache.extract.producer import BackboneProducer
from fcache.extract.request import plan_request, read_request
from fcache.store.index import ViewIndex
from fcache.store.inspect import list_videos, summarise
from fcache.store.records import FrameRecord, Outcome
from fcache.store.shard import ShardWriter
from fcache.store.verify import unfinished
from fcache.store.writer import RowGroup
from tests.extract.images import SIDES, filled, make_image, make_images, rows, shards
from tests.extract.making import (
    assert_same,
    assert_sound,
    expected,
    extract,
    plan_of,
    shard_hashes,
    stored,
    tree,
    words,
)
from tests.extract.running import fcache, finish, is_at_work, kill_group, spoken, start, wait_until
from tests.sources.media import moving_frames

NAMES = [f"i{number:02d}" for number in range(16)]


def assert_equals_direct_calls(cache: Path, folder: Path, **changes) -> None:
    for path in sorted(folder.glob("*.png")):
        assert_same(stored(cache, path.stem), expected(path, "image", **changes))


def index_of(cache: Path) -> ViewIndex:
    return open_cache(cache).view().index


def reserve_only(source: str, cache: Path, **changes) -> None:
    """What a job that is killed before its first commit leaves."""
    request = read_request([source, *words(**changes)])
    plan, manifest = plan_request(request, cache)
    job._prepare(plan, manifest, request.config)


def test_images_of_a_canvas_go_sixteen_to_a_shard_and_equal_direct_calls(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    make_images(folder, [f"wide{n}" for n in range(20)])
    make_images(folder, [f"wider{n}" for n in range(5)], (48, 90))
    make_images(folder, [f"tall{n}" for n in range(17)], (64, 48))
    source = make_images(folder, ["square"], (50, 50))
    summary = extract(source, tmp_path / "cache")
    assert (summary.num_videos, summary.num_frames) == (43, 43)
    assert sorted(filled(tmp_path / "cache").values()) == [1, 1, 9, 16, 16]
    assert {name: len(shard) for name, shard in by_bucket(tmp_path / "cache").items()} == {
        "32x32": 1,
        "32x64": 2,
        "64x32": 2,
    }
    assert_equals_direct_calls(tmp_path / "cache", folder)
    assert_sound(tmp_path / "cache")
    assert summarise(open_cache(tmp_path / "cache").view()).num_frames == 43


def by_bucket(cache: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for bucket, shard in shards(cache):
        found.setdefault(bucket, set()).add(shard)
    return found


@pytest.mark.parametrize("batch", [4, 16])
@pytest.mark.parametrize("changes", [{}, {"model": "test_resnet", "blocks": "none"}], ids=str)
def test_a_batch_of_mixed_valid_sizes_equals_direct_calls(
    tmp_path: Path, batch: int, changes: dict[str, str]
) -> None:
    for name, width in zip(NAMES, range(50, 98, 3), strict=True):
        make_image(tmp_path / "set" / f"{name}.png", (48, width))
    extract(f"{tmp_path}/set/*.png", tmp_path / "cache", batch=batch, **changes)
    valid = {open_cache(tmp_path / "cache").view().frames(name).valid for name in NAMES}
    assert len(valid) > 10
    for name in NAMES:
        pixels, stages = stored(tmp_path / "cache", name)
        wanted_pixels, wanted = expected(tmp_path / "set" / f"{name}.png", "image", **changes)
        assert np.array_equal(pixels, wanted_pixels)
        for one, other in zip(stages, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_broken_image_is_quarantined_alone_and_gets_a_row_once_it_is_mended(
    tmp_path: Path,
) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    good = (folder / "i07.png").read_bytes()
    (folder / "i07.png").write_bytes(good[: len(good) // 2])
    summary = extract(source, cache)
    assert list(summary.quarantined) == ["i07"]
    assert summary.num_frames == 15
    assert filled(cache) == {("32x64", 0): 15}
    before = shard_hashes(cache)
    (folder / "i07.png").write_bytes(good)
    summary = extract(source, cache)
    assert (summary.num_frames, summary.quarantined) == (1, {})
    assert filled(cache) == {("32x64", 0): 15, ("32x64", 1): 1}
    assert before.items() <= shard_hashes(cache).items()
    assert_equals_direct_calls(cache, folder)
    assert {row.state for row in list_videos(open_cache(cache).view())} == {"complete"}
    assert_sound(cache)


def test_an_image_taken_out_of_quarantine_gets_a_new_row(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    reserve_only(source, cache)
    item = next(name.item for name in index_of(cache).load().names if name.video_id == "i03")
    index_of(cache).end(Outcome(item, "quarantined", 0, "out of luck", "i03"))
    assert extract(source, cache).quarantined == {"i03": "out of luck"}
    assert filled(cache) == {("32x64", 0): 15}
    assert extract(source, cache).num_frames == 0
    plan = plan_of_retry(source, cache)
    assert plan.todo_frames == 1
    assert extract(source, cache, retry_failed=True).num_frames == 1
    assert rows(cache)["i03"] == ("32x64", 16)
    assert_equals_direct_calls(cache, folder)
    assert_sound(cache)


def plan_of_retry(source: str, cache: Path):
    return plan_request(read_request([source, *words()]), cache, retry_failed=True)[0]


def loud_weights(path: Path, factor: float) -> Path:
    """Random weights whose last kept block answers ``factor`` times as loud."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["blocks.5.mlp.fc2.weight"] *= factor
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("batch", [1, 16])
def test_an_image_whose_features_overflow_is_refused_alone(tmp_path: Path, batch: int) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    path = loud_weights(tmp_path / "w.safetensors", 1e6)
    loudest = {
        name: float(np.abs(expected(folder / f"{name}.png", "image", weights=path)[1][3]).max())
        for name in NAMES
    }
    second, first = sorted(loudest, key=loudest.__getitem__)[-2:]
    between = (loudest[first] * loudest[second]) ** 0.5
    assert loudest[first] > 1.001 * between
    loud_weights(path, 1e6 * 65504 / between)
    summary = extract(source, cache, weights=path, dtype="float16", batch=batch)
    assert list(summary.quarantined) == [first]
    assert "float16 holds up to" in summary.quarantined[first]
    assert summary.num_frames == 15
    assert filled(cache) == {("32x64", 0): 15}
    again = extract(source, cache, weights=path, dtype="float16", batch=batch, retry_failed=True)
    assert (list(again.quarantined), again.num_frames) == ([first], 0)
    assert filled(cache) == {("32x64", 0): 15}


def test_images_that_are_added_go_to_shards_of_their_own(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    extract(make_images(folder, NAMES[:5]), cache)
    before = shard_hashes(cache)
    summary = extract(make_images(folder, NAMES[5:]), cache)
    assert summary.num_frames == 11
    assert filled(cache) == {("32x64", 0): 5, ("32x64", 1): 11}
    assert before.items() <= shard_hashes(cache).items()
    whole = tree(cache)
    assert extract(f"{folder}/*.png", cache).num_frames == 0
    assert tree(cache) == whole


def test_a_plan_of_an_interrupted_set_counts_its_images_once(tmp_path: Path) -> None:
    source = make_images(tmp_path / "set", NAMES)
    fresh = plan_of(source, tmp_path / "cache")
    reserve_only(source, tmp_path / "cache")
    resumed = plan_of(source, tmp_path / "cache")
    assert (resumed.todo_frames, resumed.todo_bytes) == (16, fresh.todo_bytes)


def test_a_part_of_an_interrupted_set_takes_the_shard_and_the_rest_another(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    reserve_only(source, cache)
    assert extract(f"{folder}/i0*.png", cache).num_frames == 10
    assert filled(cache) == {("32x64", 0): 10}
    assert len(unfinished(index_of(cache), index_of(cache).load())) == 6
    assert extract(source, cache).num_frames == 6
    assert filled(cache) == {("32x64", 0): 10, ("32x64", 1): 6}
    assert_equals_direct_calls(cache, folder)
    assert_sound(cache)


def test_a_shard_taken_back_is_made_again_bit_for_bit_however_the_images_are_listed(
    tmp_path: Path,
) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    extract(source, cache, batch=4)
    before = shard_hashes(cache)
    (view,) = open_cache(cache).views
    view.index.forget(view.frames("i00").item.bucket, [0])
    assert unfinished(view.index, view.index.load()) == NAMES
    request = read_request([source, *words(batch=4)])
    backwards = type(request)(
        request.config, request.manifest, request.sources[::-1], request.identity
    )
    plan, manifest = plan_request(backwards, cache)
    summary = job.run_job(
        plan, manifest, request.config, scheduler="inline", report=lambda event: None
    )
    assert summary.num_frames == 16
    assert shard_hashes(cache) == before
    assert_sound(cache)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The canvases of every batch that is computed from here on."""
    seen: list[np.ndarray] = []
    real = BackboneProducer.produce

    def watched(self: BackboneProducer, canvases: np.ndarray, *more):
        seen.append(canvases.copy())
        return real(self, canvases, *more)

    monkeypatch.setattr(BackboneProducer, "produce", watched)
    return seen


def test_a_shard_taken_back_comes_back_without_an_image_whose_file_is_gone(
    tmp_path: Path, computed: list[np.ndarray]
) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    extract(source, cache, batch=4)
    before = {name: stored(cache, name) for name in NAMES}
    (view,) = open_cache(cache).views
    view.index.forget(view.frames("i00").item.bucket, [0])
    kept = (folder / "i05.png").read_bytes()
    (folder / "i05.png").unlink()
    first, computed[:] = list(computed), []
    assert extract(source, cache, batch=4).num_frames == 15
    # Each image is computed at the same place of as large a batch as before.
    assert [batch.shape for batch in computed] == [batch.shape for batch in first]
    pairs = zip(_rows(first), _rows(computed), strict=True)
    assert [np.array_equal(*pair) for pair in pairs] == [name != "i05" for name in NAMES]
    for name in NAMES:
        if name != "i05":
            assert_same(stored(cache, name), before[name])
    view = open_cache(cache).view()
    assert unfinished(view.index, view.index.load()) == ["i05"]
    states = {row.video_id: row.state for row in list_videos(view)}
    assert {name for name, state in states.items() if state == "partial"} == {"i05"}
    (folder / "i05.png").write_bytes(kept)
    assert extract(source, cache, batch=4).num_frames == 1
    assert rows(cache)["i05"] == ("32x64", 16)
    assert_same(stored(cache, "i05"), before["i05"])
    assert_sound(cache)


def _rows(batches: list[np.ndarray]) -> list[np.ndarray]:
    return [canvas for batch in batches for canvas in batch]


def test_a_shard_that_another_job_commits_meanwhile_without_an_image_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    extract(f"{folder}/i00.png", tmp_path / "other")
    alone = open_cache(tmp_path / "other").view()
    reserve_only(source, cache)
    index, real = index_of(cache), job.make_tasks
    made: list[int] = []

    def make_tasks_early(*args):
        """The other job commits its image between this one's tasks and their turn."""
        tasks = real(*args)
        made.append(len(tasks))
        if len(made) == 2:  # before that it was only asked whether there are any
            commit_first(index, alone)
        return tasks

    monkeypatch.setattr(job, "make_tasks", make_tasks_early)
    monkeypatch.setattr(job, "WAIT_S", 0)
    events: list[dict] = []
    assert extract(source, cache, events=events).num_frames == 15
    assert [event["videos"] for event in events if event["event"] == "waiting"] == [16]
    assert filled(cache) == {("32x64", 0): 1, ("32x64", 1): 15}
    assert_equals_direct_calls(cache, folder)
    assert_sound(cache)


def commit_first(index: ViewIndex, alone) -> None:
    """Commits the first image of a view by itself."""
    clip = alone.read("i00")
    item = alone.frames("i00").item
    with RowGroup(index, item.bucket, 0) as group:
        tokens = [stage[0] for stage in clip.stages]
        record = FrameRecord(0, item.item, 0, "i00", 0, None, item.content)
        group.put(record, {"tokens": tokens, "pixels": [clip.pixels[0]]}, np.ones(4))
        group.commit({item.item: 1}, {})


def test_a_selection_by_time_has_no_meaning_for_an_image(tmp_path: Path) -> None:
    source = make_images(tmp_path / "set", NAMES[:2])
    summary = extract(source, tmp_path / "cache", fps=5)
    assert list(summary.quarantined) == NAMES[:2]
    assert "an image has no timestamps" in summary.quarantined["i00"]
    assert extract(source, tmp_path / "cache", stride=5, max_frames=2).num_frames == 2


def test_two_images_of_one_content_are_one_row_under_two_names(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES[:3])
    (folder / "twin.png").write_bytes((folder / "i01.png").read_bytes())
    assert extract(source, cache).num_frames == 3
    found = rows(cache)
    assert found["twin"] == found["i01"]
    assert len(set(found.values())) == 3
    assert_equals_direct_calls(cache, folder)


def test_a_folder_of_frames_and_images_lie_beside_each_other(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    images = make_images(tmp_path / "set", NAMES[:5])
    (folder := tmp_path / "seq").mkdir()
    for number, frame in enumerate(moving_frames(18, *SIDES)):
        Image.fromarray(frame).save(folder / f"{number:03d}.png")
    assert extract([images, folder], cache).num_frames == 23
    view = open_cache(cache).view()
    assert len(view.frames("seq")) == 18
    held = {row // 16 for row in view.frames("seq").rows}
    assert held.isdisjoint(row // 16 for video, (_, row) in rows(cache).items() if video != "seq")
    assert_same(stored(cache, "seq"), expected(folder, "frames"))
    assert_equals_direct_calls(cache, tmp_path / "set")
    assert_sound(cache)


def test_a_video_that_shares_a_task_with_images_is_not_kept_from_them(tmp_path: Path) -> None:
    """One bundle of runs: a broken source in it says nothing of the others."""
    cache, folder = tmp_path / "cache", tmp_path / "set"
    images = make_images(folder, NAMES[:4])
    (frames := tmp_path / "seq").mkdir()
    for number, frame in enumerate(moving_frames(6, *SIDES)):
        Image.fromarray(frame).save(frames / f"{number:03d}.png")
    data = (frames / "004.png").read_bytes()
    (frames / "004.png").write_bytes(data[: len(data) // 2])
    summary = extract([images, frames], cache)
    assert list(summary.quarantined) == ["seq"]
    assert summary.num_frames == 4
    assert_equals_direct_calls(cache, folder)


@pytest.mark.parametrize("fails_at", [3, 15, 16])
def test_a_shard_that_could_not_be_written_whole_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    source, cache = make_images(tmp_path / "set", NAMES), tmp_path / "cache"
    real, put = ShardWriter.put, []

    def put_until_full(self: ShardWriter, position: int, values: np.ndarray) -> None:
        """A disk that is full for one write and has room for the next."""
        put.append(self.path.parts)
        if len([parts for parts in put if "pixels" in parts]) == fails_at:
            put.append(("pixels",))
            raise NoSpaceError("no space left")
        real(self, position, values)

    monkeypatch.setattr(ShardWriter, "put", put_until_full)
    with pytest.raises(NoSpaceError):
        extract(source, cache)
    assert shards(cache) == set()
    monkeypatch.setattr(ShardWriter, "put", real)
    assert extract(source, cache).num_frames == 16
    assert_equals_direct_calls(cache, tmp_path / "set")
    assert_sound(cache)


def test_stopped_in_the_middle_the_shards_that_are_whole_stay(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, [f"n{n:02d}" for n in range(50)])
    request = read_request([source, *words()])
    plan, manifest = plan_request(request, cache)
    stop_name = f"{socket.gethostname()}.{os.getpid()}.stop"

    def stop(event: dict) -> None:
        if event["event"] == "commit":
            (index_of(cache).index / "claims" / stop_name).touch()

    with pytest.raises(InterruptedJobError):
        job.run_job(plan, manifest, request.config, scheduler="inline", report=stop)
    done = filled(cache)
    assert set(done.values()) == {16}
    assert extract(source, cache).num_frames == 50 - sum(done.values())
    assert_sound(cache)


def test_two_jobs_over_parts_of_one_shard_leave_every_image_once(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    source = make_images(folder, NAMES)
    reserve_only(source, cache)
    parts = [f"{folder}/i0*.png", f"{folder}/i[01][0-5].png"]
    more = ("--cache", cache, "--json", "--scheduler", "inline", *words())
    both = [start("extract", part, *more) for part in parts]
    ends = [finish(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert len(rows(cache)) == 16
    assert len(set(rows(cache).values())) == 16
    assert_equals_direct_calls(cache, folder)
    assert_sound(cache)


def test_killed_twice_a_set_of_images_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    source = make_images(tmp_path / "set", [f"n{n:03d}" for n in range(160)])
    settings = words(short_side=96)
    extract(source, tmp_path / "whole", short_side=96)
    cache, rng = tmp_path / "cache", random.Random(3)
    for _ in range(2):
        process = start(
            "extract", source, "--cache", cache, "--json", "--scheduler", "inline", *settings
        )
        wait_until(lambda running=process: is_at_work(cache) or running.poll() is not None)
        time.sleep(rng.uniform(0, 0.4))
        kill_group(process)
        process.communicate()
        visible = {path: sha for path, sha in shard_hashes(cache).items() if "/." not in path}
        assert visible.items() <= shard_hashes(tmp_path / "whole").items()
    code, _, err = fcache("extract", source, "--cache", cache, "--scheduler", "inline", *settings)
    assert (code, spoken(err)) == (0, [])
    for path in cache.rglob("*.tmp"):
        path.unlink()
    assert shard_hashes(cache) == shard_hashes(tmp_path / "whole")
    assert_sound(cache)
