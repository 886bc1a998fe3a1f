"""The compact tier in the job: what int8 holds is what quantising a direct call gives."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from fcache.cache import open_cache
from fcache.errors import ConfigError
from fcache.extract import calibration_job
from fcache.extract.calibrate import Calibration
from fcache.extract.calibration_job import calibrate
from fcache.extract.identity import inherited
from fcache.extract.job import run_job
from fcache.extract.precision import ERROR_COLUMNS, describe_errors, merge_errors
from fcache.extract.quantise import Quantiser, valid_tokens
from fcache.extract.request import plan_request, read_request
from fcache.store.verify import unfinished
from tests.cli.running import run
from tests.extract.images import make_image, make_images
from tests.extract.making import (
    PYRAMID,
    assert_sound,
    expected,
    make_video,
    make_videos,
    shard_hashes,
    words,
)
from tests.extract.running import fcache, is_at_work, kill_group, spoken, start, wait_until

LENGTHS = {"a": 16, "b": 21, "c": 3}


def compact(source: Path | str | Sequence[Any], cache: Path, **changes: Any):
    """Extracts as int8 in this process, as the command does it."""
    sources = [str(one) for one in (source if isinstance(source, list) else [source])]
    request = read_request([*sources, *words(dtype="int8", **changes)])
    calibration = inherited(cache, request.identity)
    if calibration is None:
        calibration, request = calibrate(request, cache, scheduler="inline")
    request = request.calibrated(calibration)
    plan, manifest = plan_request(request, cache)
    return run_job(plan, manifest, request.config, scheduler="inline", report=lambda event: None)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), LENGTHS)


@pytest.fixture(scope="module")
def caches(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The videos as a plain ViT and as a pyramid; tests copy what they change."""
    folder = tmp_path_factory.mktemp("caches")
    compact(videos, folder / "plain")
    compact(videos, folder / "pyramid", **PYRAMID)
    return {name: folder / name for name in ("plain", "pyramid")}


@pytest.fixture
def copied(caches: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(caches["plain"], tmp_path / "cache"))


CHANGES: dict[str, dict[str, str]] = {"plain": {}, "pyramid": PYRAMID}


def quantised(view, stages: list[np.ndarray], valid: tuple[int, int]):
    """Values, token scales and errors [T, S, K] that a direct call's outputs are quantised to."""
    quantiser = Quantiser(view.channel_scales, torch.device("cpu"))
    found = []
    for stage, features in enumerate(stages):
        inside = valid_tokens([valid] * len(features), view.index.layout.strides[stage])
        found.append(quantiser.quantise(stage, torch.from_numpy(features), inside))
    errors = torch.stack([one.errors for one in found], 1).numpy()
    return [one.values.numpy() for one in found], [one.scale.numpy() for one in found], errors


@pytest.mark.parametrize("kind", ["plain", "pyramid"])
def test_stored_bits_are_those_of_a_direct_call_quantised(
    videos: Path, caches: dict[str, Path], kind: str
) -> None:
    view = open_cache(caches[kind]).view()
    recorded: dict[int, np.ndarray] = {}
    for text, shard in zip(*shard_stats(view), strict=True):
        recorded[shard] = np.array(json.loads(text)["errors"])
    for name in LENGTHS:
        pixels, stages = expected(videos / f"{name}.mp4", **CHANGES[kind])
        held = view.frames(name)
        clip = view.read(held)
        assert clip.pixels is not None
        values, scales, errors = quantised(view, stages, held.valid)
        assert np.array_equal(clip.pixels, pixels)
        for stage in range(4):
            assert clip.stages[stage].dtype == np.int8
            assert np.array_equal(clip.stages[stage], values[stage])
            assert np.array_equal(clip.scales[stage], scales[stage])
        for first, shard in held.item.shards(len(held)):
            wanted = merge_errors(errors[first : first + 16])
            np.testing.assert_allclose(recorded[shard], wanted, rtol=1e-12)


def shard_stats(view) -> tuple[list[str], list[int]]:
    """The stats and number of each shard of the array of features."""
    table = view.state.tables.shards.table().to_pylist()
    mine = [row for row in table if row["array"] == view.index.feature_array]
    return [row["stats"] for row in mine], [row["shard"] for row in mine]


@pytest.mark.parametrize("kind", ["plain", "pyramid"])
def test_values_read_back_within_the_error_that_is_recorded(
    videos: Path, caches: dict[str, Path], kind: str
) -> None:
    view = open_cache(caches[kind]).view()
    stats, _ = shard_stats(view)
    said = describe_errors(merge_errors([np.array(json.loads(one)["errors"]) for one in stats]))
    noise, signal, worst = np.zeros(4), np.zeros(4), np.zeros(4)
    for name in LENGTHS:
        _, stages = expected(videos / f"{name}.mp4", **CHANGES[kind])
        held = view.frames(name)
        clip = view.read(held)
        for stage, features in enumerate(stages):
            stride = view.index.layout.strides[stage]
            (rows, columns), *_ = valid_tokens([held.valid], stride)
            exact = features[:, :rows, :columns].astype(np.float64)
            error = exact - clip.floats(stage)[:, :rows, :columns]
            noise[stage] += (error**2).sum()
            signal[stage] += (exact**2).sum()
            of_token = np.linalg.norm(error, axis=-1) / np.linalg.norm(exact, axis=-1)
            worst[stage] = max(worst[stage], of_token.max())
    for stage in range(4):
        assert 0 < said[stage]["relative_l2"] < 0.02
        assert said[stage]["relative_l2"] == pytest.approx((noise[stage] / signal[stage]) ** 0.5)
        assert said[stage]["worst_token"] == pytest.approx(worst[stage], rel=1e-4)


@pytest.mark.parametrize("kind", ["plain", "pyramid"])
def test_zarr_python_and_the_formula_of_the_docs_give_the_same_floats(
    caches: dict[str, Path], kind: str
) -> None:
    view = open_cache(caches[kind]).view()
    group: Any = zarr.open_group(caches[kind] / view.key, mode="r")
    channels = group.attrs["fcache"]["calibration"]["channel_scales"]
    for name in LENGTHS:
        held = view.frames(name)
        clip = view.read(held)
        bucket, rows = group[held.item.bucket.name], list(held.rows)
        for stage in range(4):
            if kind == "plain":
                levels, scale = bucket["tokens"][:][rows, stage], bucket["scale"][:][rows, stage]
            else:
                levels, scale = bucket[f"stage{stage}"][:][rows], bucket[f"scale{stage}"][:][rows]
            floats = levels.astype(np.float32) * scale.astype(np.float32)[..., None]
            floats *= np.array(channels[stage], np.float32)
            assert np.array_equal(clip.floats(stage), floats)


@pytest.mark.parametrize("kind", ["plain", "pyramid"])
def test_a_window_of_values_and_scales_is_a_slice_of_all(
    caches: dict[str, Path], kind: str
) -> None:
    view = open_cache(caches[kind]).view()
    whole = view.read("b")
    grid = whole.stages[3].shape[1:3]
    part = view.read("b", [20, 0, 5], window=(0, 1, 1, grid[1] - 1), stages=(3, 1))
    for place, stage in enumerate((3, 1)):
        times = view.index.layout.strides[3] // view.index.layout.strides[stage]
        cut = (slice(0, times), slice(times, grid[1] * times))
        assert np.array_equal(part.stages[place], whole.stages[stage][[20, 0, 5]][:, *cut])
        assert np.array_equal(part.scales[place], whole.scales[stage][[20, 0, 5]][:, *cut])
        assert np.array_equal(part.floats(place), whole.floats(stage)[[20, 0, 5]][:, *cut])
    again = view.read("b", [1, 2, 3], window=(0, 1, 1, grid[1] - 1), stages=(3, 1), out=part)
    assert again.blocks[0] is part.blocks[0]
    assert np.array_equal(again.floats(0), whole.floats(3)[[1, 2, 3]][:, :1, 1:])


def sha256s(cache: Path) -> list[str]:
    return [view.index.attributes["calibration"]["sha256"] for view in open_cache(cache).views]


def test_a_second_cache_calibrates_to_the_same_scales_and_the_same_bits(
    videos: Path, caches: dict[str, Path], tmp_path: Path
) -> None:
    (folder := tmp_path / "elsewhere").mkdir()
    for path in sorted(videos.glob("*.mp4"), reverse=True):
        shutil.copy(path, folder / path.name)
    compact([folder / f"{name}.mp4" for name in "cab"], tmp_path / "cache", batch=4)
    assert sha256s(tmp_path / "cache") == sha256s(caches["plain"])
    one, other = (open_cache(cache).view() for cache in (tmp_path / "cache", caches["plain"]))
    assert one.key == other.key
    for name in LENGTHS:
        assert np.array_equal(one.read(name).blocks[0], other.read(name).blocks[0])


def test_later_extractions_inherit_the_scales(copied: Path, tmp_path: Path) -> None:
    before = shard_hashes(copied)
    path = make_video(tmp_path / "d.mp4", 5)
    compact(path, copied)
    assert len(open_cache(copied).views) == 1
    compact(path, copied, flip="true")
    compact(path, copied, crop=32, crops=2)
    assert len(open_cache(copied).views) == 3
    assert len(set(sha256s(copied))) == 1
    assert before.items() <= shard_hashes(copied).items()
    # Another size gives other features: its scales are its own.
    compact(path, copied, short_side=64)
    assert len(set(sha256s(copied))) == 2
    assert_sound(copied)


def test_how_many_crops_are_drawn_says_nothing_about_the_scales(
    videos: Path, tmp_path: Path
) -> None:
    crop = {"crop": "32", "short_side": "40..60"}
    for crops in (1, 3):
        compact(videos / "b.mp4", tmp_path / str(crops), crops=crops, **crop)
    assert sha256s(tmp_path / "1") == sha256s(tmp_path / "3")


def test_images_that_share_shards_are_compact_too(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    make_images(folder, [f"i{n}" for n in range(5)])
    source = make_images(folder, ["wide"], (48, 90))
    compact(source, tmp_path / "cache", batch=4)
    view = open_cache(tmp_path / "cache").view()
    for path in folder.glob("*.png"):
        held = view.frames(path.stem)
        clip = view.read(held)
        values, scales, _ = quantised(view, expected(path, "image")[1], held.valid)
        for stage in range(4):
            assert np.array_equal(clip.stages[stage], values[stage])
            assert np.array_equal(clip.scales[stage], scales[stage])
    (stats,) = set(shard_stats(view)[0])
    sums = np.array(json.loads(stats)["errors"])
    # Nothing that stands in for a neighbour is counted: of every image, its valid tokens.
    assert sums[0, ERROR_COLUMNS.index("num_tokens")] == 5 * 2 * 3 + 2 * 4


def test_an_image_that_int8_cannot_hold_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales from dim frames, and one image in which a channel is far beyond what they hold."""
    source = make_images(tmp_path / "set", [f"i{n}" for n in range(6)])
    request = read_request([source, *words(dtype="int8", batch=16)])
    real, request = calibrate(request, tmp_path / "cache", scheduler="inline")
    loud = {
        path.stem: [float(np.abs(stage).max()) for stage in expected(path, "image")[1]]
        for path in (tmp_path / "set").glob("*.png")
    }
    second, first = sorted(loud, key=lambda name: loud[name][3])[-2:]
    limit = (loud[first][3] * loud[second][3]) ** 0.5
    last = np.full(len(real.channel_scales[3]), limit / (127 * 65504), np.float32)
    request = request.calibrated(Calibration((*real.channel_scales[:3], last), 1))
    plan, manifest = plan_request(request, tmp_path / "cache")
    summary = run_job(plan, manifest, request.config, scheduler="inline", report=lambda event: None)
    assert list(summary.quarantined) == [first]
    assert "int8 cannot hold" in summary.quarantined[first]
    assert summary.num_frames == 5
    view = open_cache(tmp_path / "cache").view()
    assert set(view.videos) == loud.keys() - {first}


@pytest.mark.parametrize("num_frames", [1, 7, 500])
def test_as_many_frames_are_looked_at_as_asked_and_no_more_are_held(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_frames: int
) -> None:
    request = read_request([str(videos), *words(dtype="int8", calibration_frames=num_frames)])
    drawn, looked_at, most = 0, 0, 0
    draw, look = calibration_job.draw, calibration_job.BackboneProducer.calibrate

    def counted_draw(*args):
        nonlocal drawn, most
        drawn += 1
        most = max(most, drawn - looked_at)
        return draw(*args)

    def counted_look(self, canvases, valid):
        def counted():
            nonlocal looked_at
            for canvas in canvases:
                yield canvas
                looked_at += 1

        return look(self, counted(), valid)

    monkeypatch.setattr(calibration_job, "draw", counted_draw)
    monkeypatch.setattr(calibration_job.BackboneProducer, "calibrate", counted_look)
    seen: list[tuple[int, int]] = []
    calibration, _ = calibrate(
        request,
        tmp_path / "cache",
        scheduler="inline",
        progress=lambda *at: seen.append(at),
    )
    wanted = min(num_frames, sum(LENGTHS.values()))
    assert (calibration.num_frames, drawn) == (wanted, wanted)
    assert most == 1
    assert seen[-1] == (wanted, wanted)
    assert not (tmp_path / "cache").exists()


def test_nothing_to_calibrate_on_says_so_and_why(tmp_path: Path) -> None:
    make_image(tmp_path / "set" / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"needs frames to calibrate on.* 'bad': "):
        compact(f"{tmp_path}/set/*.png", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_plan_of_int8_without_scales_is_refused(videos: Path, tmp_path: Path) -> None:
    request = read_request([str(videos), *words(dtype="int8")])
    plan, manifest = plan_request(request, tmp_path / "cache")
    with pytest.raises(ValueError, match="without channel scales"):
        run_job(plan, manifest, request.config, scheduler="inline", report=lambda event: None)
    assert not (tmp_path / "cache").exists()


def test_a_plan_before_calibration_looks_at_nothing_and_sizes_what_would_be_written(
    videos: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    command = ["extract", videos, "--cache", cache, "--json", *words(dtype="int8")]
    code, out, err = run(*command, "--plan")
    assert (code, spoken(err)) == (0, [])
    assert not cache.exists()
    planned = json.loads(out)
    assert planned["frames_to_do"] == 40
    code, out, err = run(*command, "--scheduler", "inline")
    assert (code, spoken(err)) == (0, [])
    done = json.loads(out)
    assert done["frames"] == 40
    files = sum(path.stat().st_size for path in cache.glob("*/*x*/*/c/**/*") if path.is_file())
    assert planned["bytes_to_do"] == pytest.approx(files, rel=0.15)
    view = open_cache(cache).view()
    asked = words(dtype="int8")
    code, out, _ = run("why", cache, "--json", "stride=2")
    assert (code, json.loads(out)["views"][0]["hit"]) == (0, view.key)
    code, out, _ = run("why", cache, "--json", "flip=true")
    (answer,) = json.loads(out)["views"]
    assert answer["hit"] is None
    assert answer["differences"] == ["view.flip: False -> True"]
    code, out, _ = run("why", cache, "--json", "dtype=float16")
    (answer,) = json.loads(out)["views"]
    assert [text.partition(":")[0] for text in answer["differences"]] == ["calibration", "dtype"]
    code, out, _ = run("extract", videos, "--cache", cache, "--json", "--plan", *asked)
    assert json.loads(out)["key"] == view.key


def test_killed_and_taken_up_again_the_bits_are_the_same(tmp_path: Path) -> None:
    folder = make_videos(tmp_path / "videos", {f"v{n}": 40 + n for n in range(6)})
    settings = {"short_side": 96}
    compact(folder, tmp_path / "whole", **settings)
    cache, rng = tmp_path / "cache", random.Random(1)
    command = ["extract", folder, "--cache", cache, "--json", "--scheduler", "inline"]
    command += words(dtype="int8", **settings)
    for _ in range(2):
        process = start(*command)
        wait_until(lambda running=process: is_at_work(cache) or running.poll() is not None)
        time.sleep(rng.uniform(0, 0.3))
        kill_group(process)
        process.communicate()
    code, _, err = fcache(*command)
    assert (code, spoken(err)) == (0, [])
    for path in cache.rglob("*.tmp"):
        path.unlink()
    assert shard_hashes(cache) == shard_hashes(tmp_path / "whole")
    view = open_cache(cache).view()
    assert unfinished(view.index, view.index.load()) == []
