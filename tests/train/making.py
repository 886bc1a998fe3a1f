"""Tiny training runs: a recipe of a few steps, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fcache.config import SegmenterConfig
from fcache.train.job import TrainResult, run_training

# Every canvas is 64 x 96: one bucket, 4 x 6 tokens.
VIEW = {"dtype": "float16", "size": "64x96", "short_side": "none"}
TINY: Mapping[str, Any] = {
    "adapter": "vit",
    "prior_width": 8,
    "dim": 32,
    "num_encoder_layers": 1,
    "encoder_ffn_dim": 64,
    "num_queries": 12,
    "num_layers": 2,
    "ffn_dim": 64,
    "num_points": 64,
    "num_frames": 1,
    "batch": 2,
    "lr": 1e-3,
    "weight_decay": 0.05,
    "steps": 4,
    "clip_norm": 1.0,
    "device": "cpu",
    "num_readers": 1,
    "log_every": 1,
}


def tiny(**changes: Any) -> SegmenterConfig:
    return SegmenterConfig.model_validate({**TINY, **changes})


def train(
    cache: Path | str,
    run: Path,
    *,
    report: Callable[[dict[str, Any]], None] | None = None,
    **changes: Any,
) -> TrainResult:
    return run_training(cache, tiny(**changes), run, report=report or (lambda event: None))


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint that hold numbers."""
    return {name.name: name.read_bytes() for name in sorted(folder.glob("*.safetensors"))}
