"""Stage outputs on a device: the values that a reader without torch sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fcache.cache import open_cache
from fcache.data.device import stages_on
from tests.cli.running import run
from tests.extract.making import make_video, words

NETWORKS = {"plain": {}, "pyramid": {"model": "test_resnet", "blocks": "none"}}
STORED = ("float16", "bfloat16", "float32", "int8")


@pytest.fixture(scope="module", params=NETWORKS)
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A view of every stored type."""
    folder = tmp_path_factory.mktemp(request.param)
    video = make_video(folder / "a.mp4", 5)
    for dtype in STORED:
        settings = words(**NETWORKS[request.param], dtype=dtype)
        code, _, err = run(
            "extract", video, "--cache", folder / "cache", "--scheduler", "inline", *settings
        )
        assert code == 0, err
    return folder / "cache"


def views(cache: Path):
    return {view.index.layout.dtype: view for view in open_cache(cache).views}


@pytest.mark.parametrize("stages", [None, [2], [3, 1]])
@pytest.mark.parametrize("dtype", STORED)
def test_float32_on_a_device_equals_floats(cache: Path, dtype: str, stages) -> None:
    clip = views(cache)[dtype].read("a", [4, 0, 2], stages=stages)
    found = stages_on(clip, "cpu")
    assert len(found) == len(clip.stages) == len(stages or range(4))
    for stage, values in enumerate(found):
        assert values.dtype == torch.float32
        assert np.array_equal(values.numpy(), clip.floats(stage).astype(np.float32))


@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", STORED)
def test_other_types_are_the_stored_values_rounded_once(cache: Path, dtype: str, wanted) -> None:
    clip = views(cache)[dtype].read("a", window=(0, 0, 1, 1))
    for stage, values in enumerate(stages_on(clip, "cpu", wanted)):
        exact = torch.from_numpy(clip.floats(stage).astype(np.float32))
        assert values.dtype == wanted
        assert torch.equal(values, exact.to(wanted))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", STORED)
def test_cuda_holds_the_same_bits(cache: Path, dtype: str) -> None:
    clip = views(cache)[dtype].read("a")
    for stage, values in enumerate(stages_on(clip, "cuda")):
        assert values.device.type == "cuda"
        assert np.array_equal(values.cpu().numpy(), clip.floats(stage).astype(np.float32))
