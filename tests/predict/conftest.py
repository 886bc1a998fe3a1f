"""Two trained heads, and the cache that they predict on."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcache.demo.scene import render_set
from tests.extract.making import extract
from tests.train.making import train

VIEW = {"dtype": "float16", "short_side": "64"}  # frames keep their own sizes, 64x96 and 64x72


@pytest.fixture(scope="session")
def predict_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    render_set(folder, num_train=3, num_val=2, num_frames=5, height=64, width=96, fps=4, seed=3)
    return folder


@pytest.fixture(scope="session")
def predict_cache(predict_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "cache"
    extract(predict_scenes / "manifest.toml", path, **VIEW)
    return path


@pytest.fixture(scope="session")
def head(predict_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("heads") / "first"
    train(predict_cache, run, steps=30, lr=3e-3, adapter_lr_factor=1.0)
    return run


@pytest.fixture(scope="session")
def other_head(predict_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("heads") / "other"
    settings = {"num_queries": 9, "seed": 4, "targets": "semantic", "val_frames": 1}
    train(predict_cache, run, steps=8, lr=3e-3, **settings)
    return run
