"""A small set of rendered videos with panoptic labels, extracted once for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcache.demo.scene import render_set
from tests.extract.making import extract
from tests.train.making import VIEW


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_set(folder, num_train=3, num_val=2, num_frames=4, height=64, width=96, fps=4, seed=3)
    return folder


@pytest.fixture(scope="session")
def scene_cache(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "cache"
    extract(scenes / "manifest.toml", path, **VIEW)
    return path
