"""Small extractions in this process: real videos, a tiny network with random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcache.backbones import load
from fcache.cache import Cache, open_cache
from fcache.extract.job import JobSummary, run_job
from fcache.extract.request import plan_request, read_request
from fcache.sources.decode import decode
from fcache.sources.geometry import draw, place
from fcache.store.cache import View
from fcache.store.verify import check_metadata, check_shards, unfinished
from tests.sources.media import encode, moving_frames

SETTINGS = {
    "model": "test_vit",
    "blocks": "[1,2,4,5]",
    "weights": "random:0",
    "short_side": "32",
    "long_side_max": "none",
    "compute_dtype": "float32",
    "dtype": "float32",
}
PYRAMID = {"model": "test_resnet", "blocks": "none", "short_side": "64"}
LENGTHS = {"a": 16, "b": 21, "c": 3}  # one shard, one and a bit, part of one


def words(**changes: Any) -> list[str]:
    """The settings of a tiny extraction, as they are typed."""
    return [f"{key}={value}" for key, value in {**SETTINGS, **changes}.items()]


def make_video(path: Path, num_frames: int, height: int = 48, width: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int(hashlib.sha256(path.stem.encode()).hexdigest()[:8], 16)
    return encode(path, moving_frames(num_frames, height, width, seed=seed))


def make_videos(folder: Path, lengths: dict[str, int] = LENGTHS) -> Path:
    for name, num_frames in lengths.items():
        make_video(folder / f"{name}.mp4", num_frames)
    return folder


def extract(
    source: Path | str | list[Any],
    cache: Path,
    *,
    scheduler: str = "inline",
    retry_failed: bool = False,
    first: int | None = None,
    events: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> JobSummary:
    """Runs the whole job in this process."""
    sources = [str(one) for one in (source if isinstance(source, list) else [source])]
    request = read_request([*sources, *words(**changes)])
    plan, manifest = plan_request(request, cache, retry_failed=retry_failed, first=first)
    heard = events if events is not None else []
    return run_job(plan, manifest, request.config, scheduler=scheduler, report=heard.append)


def plan_of(source: Path | str, cache: Path, **changes: Any):
    """The plan alone."""
    return plan_request(read_request([str(source), *words(**changes)]), cache)[0]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


def shard_files(cache: Path) -> list[Path]:
    """Every file below an array's ``c``."""
    paths = sorted(p for p in cache.rglob("*") if p.is_file())
    return [path for path in paths if "/c/" in str(path.relative_to(cache))]


def shard_hashes(cache: Path) -> dict[str, str]:
    """sha256 of every shard file."""
    paths = shard_files(cache)
    return {str(p.relative_to(cache)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def expected(path: Path, kind: str = "video", **changes: Any):
    """What a direct call of the backbone gives: canvases, and stage outputs [T, h, w, C] each."""
    config = read_request([str(path), *words(**changes)]).config
    net = load(config.backbone, device=torch.device("cpu"))
    canvases, outputs = [], []
    for frame in decode(path, kind, config.selection):
        assert frame is not None
        at = place(*frame.rgb.shape[:2], config.geometry)
        canvases.append(draw(frame.rgb, at))
        batch = torch.from_numpy(canvases[-1][None])
        outputs.append([stage[0].numpy() for stage in net(batch, (at.crop_h, at.crop_w))])
    return np.stack(canvases), [np.stack(stage) for stage in zip(*outputs, strict=True)]


def stored(cache: Cache | Path, video: str, view: str = ""):
    """A whole video as it lies in the cache: canvases and stage outputs as floats."""
    opened = open_cache(cache) if isinstance(cache, Path) else cache
    clip = opened.view(view).read(video)
    return clip.pixels, [clip.floats(stage) for stage in range(len(clip.stages))]


def assert_sound(found: Path | View) -> None:
    """In a view, or in all of a cache, nothing is damaged and no video lacks a frame."""
    for view in [found] if isinstance(found, View) else open_cache(found).views:
        state = view.index.load()
        assert list(check_metadata(view.index, state)) == []
        assert [f for part in check_shards(view.index, state) for f in part.findings] == []
        assert unfinished(view.index, state) == []


def assert_same(found, wanted) -> None:
    """Pixels and stage outputs are equal bit for bit."""
    assert np.array_equal(found[0], wanted[0])
    assert len(found[1]) == len(wanted[1]) == 4
    for one, other in zip(found[1], wanted[1], strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other)
