"""Features that cannot be stored: the shard is refused whole and the video named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fcache.cache import open_cache
from fcache.extract.drawn import Drawn
from fcache.extract.producer import Produced
from fcache.extract.shards import ShardSequence
from fcache.extract.tasks import Member, VideoRun
from fcache.sources.listing import Source
from fcache.store.cache import create_root
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from tests.extract.making import (
    assert_same,
    expected,
    extract,
    make_videos,
    shard_files,
    shard_hashes,
    stored,
)
from tests.store.making import PLAIN, request, values


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), {"a": 3, "b": 20})


def weights(path: Path, factor: float) -> Path:
    """Random weights whose last kept block adds values ``factor`` times larger."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["blocks.5.mlp.fc2.bias"] += factor
    save_file(tensors, path)
    return path


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.name.endswith(".tmp")]


@pytest.mark.parametrize(("factor", "said"), [(1e6, "dtype=bfloat16"), (float("nan"), "NaN")])
def test_overflow_and_nan_refuse_the_shard_and_name_the_video(
    videos: Path, tmp_path: Path, factor: float, said: str
) -> None:
    path = weights(tmp_path / "w.safetensors", factor)
    summary = extract(videos, tmp_path / "cache", weights=path, dtype="float16")
    assert list(summary.quarantined) == ["a", "b"]
    assert said in summary.quarantined["a"]
    assert "frame 0 ('00000'), stage 3" in summary.quarantined["a"]
    assert summary.num_frames == 0
    view = open_cache(tmp_path / "cache").view()
    assert view.videos == []
    assert shard_files(tmp_path / "cache") == []
    assert leftovers(tmp_path / "cache") == []


def test_what_overflows_float16_is_stored_as_bfloat16(videos: Path, tmp_path: Path) -> None:
    path = weights(tmp_path / "w.safetensors", 1e6)
    extract(videos, tmp_path / "cache", weights=path, dtype="float16")
    before = shard_hashes(tmp_path / "cache")
    extract(videos, tmp_path / "cache", weights=path, dtype="bfloat16")
    (view,) = (view for view in open_cache(tmp_path / "cache").views if view.videos)
    pixels, stages = expected(videos / "a.mp4", weights=path)
    wanted = [torch.from_numpy(stage).bfloat16().float().numpy() for stage in stages]
    assert np.abs(wanted[3]).max() > 65504
    assert_same(stored(tmp_path / "cache", "a", view.key), (pixels, wanted))
    assert before.items() <= shard_hashes(tmp_path / "cache").items()


@pytest.mark.parametrize("bad", [0, 7, 14, 15])
def test_a_shard_with_one_bad_frame_anywhere_is_not_committed(tmp_path: Path, bad: int) -> None:
    create_root(tmp_path / "cache")
    index = ViewIndex.create(tmp_path / "cache", PLAIN, {})
    wanted = request("x", 40)
    item = index.reserve([wanted], [])[wanted.item]
    source = Source("x", tmp_path / "x", "video", None)
    run = VideoRun(Member(item, source, "x"), (0, 16, 32), True)
    with (
        Claims(index.index) as claims,
        ShardSequence(index, claims, 0, {}, lambda event: None) as shards,
    ):
        for frame in range(40):
            stages, pixels = values(index, item, frame)
            drawn = Drawn(item, frame, f"{frame:05d}", frame, 0, pixels)
            shards.turn_to(drawn)
            largest = np.full((1, 4), np.nan if frame == 16 + bad else 1.0)
            tokens = [stage[None] for stage in stages]
            shards.put([drawn], Produced({"tokens": tokens}, largest), [0])
        shards.end_video(run, 40)
        shards.finish()
    assert f"frame {16 + bad} " in shards.refused[item.item]
    state = index.load()
    assert ("64x96", "tokens", 0) in state.shards
    assert ("64x96", "tokens", 1) not in state.shards
    assert state.outcomes == {}
    assert leftovers(tmp_path / "cache") == []
    assert list((index.index / "claims").glob("*.json")) == []
