"""A job that takes long enough to be disturbed, for all tests of what may happen to one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.extract.making import extract, make_videos, shard_hashes
from tests.extract.running import LONG_FRAMES


@pytest.fixture(scope="session")
def long_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("long"), LONG_FRAMES)


@pytest.fixture(scope="session")
def wanted(long_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The shard files of a job that nothing happened to."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    extract(long_videos, cache, short_side=96)
    return shard_hashes(cache)
