"""The bench of the training step runs, and notices a source that gives other losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.bench_train_step import CASES, Work, check_losses, reading, run
from tests.train.making import TINY

SMALL = {key: value for key, value in TINY.items() if key not in {"batch", "steps", "device"}}
WORK = Work("test_vit", {"crop": "64", "blocks": "[1,2,4,5]", "dtype": "float16"}, SMALL, (64, 96))


def test_every_case_is_timed_against_the_others(tmp_path: Path) -> None:
    text = run(WORK, tmp_path, CASES, rounds=1)
    for told in ("cache / memory", "live / cache", "eager / memory", "steps/s", "largest memory"):
        assert told in text
    assert "a batch alone, cpu: cache " in reading(WORK, tmp_path)


def test_other_losses_are_noticed() -> None:
    check_losses({"cache": lambda: 2.0, "live": lambda: 2.0, "eager": lambda: 2.001})
    with pytest.raises(ValueError, match="losses of the first step differ"):
        check_losses({"cache": lambda: 2.0, "live": lambda: 2.0000001})
