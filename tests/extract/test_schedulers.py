"""Other places to run: an existing dask scheduler, SLURM, and what is said where there is none."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from fcache.cache import open_cache
from fcache.errors import ConfigError
from tests.extract.dask_running import dask_scheduler, dask_worker
from tests.extract.making import extract, make_videos, shard_hashes, words
from tests.extract.running import fcache, spoken, start

LENGTHS = {"a": 20, "b": 5}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), LENGTHS)


@pytest.fixture
def wanted(videos: Path, tmp_path: Path) -> dict[str, str]:
    extract(videos, tmp_path / "inline")
    return shard_hashes(tmp_path / "inline")


def test_a_given_scheduler_does_the_job_and_waits_for_a_first_worker(
    videos: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with dask_scheduler(tmp_path) as (_, address):
        process = start("extract", videos, "--cache", cache, "--scheduler", address, *words())
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any('"event": "no_workers"' in line for line in lines)
        with dask_worker(address, tmp_path, num_threads=2):
            _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert spoken(err) == []
    assert shard_hashes(cache) == wanted


def test_an_address_that_nobody_answers_is_one_message(videos: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    code, out, err = fcache(
        "extract", videos, "--cache", tmp_path / "c", "--scheduler", "tcp://127.0.0.1:9", *words()
    )
    assert time.monotonic() - began < 60
    assert (code, out) == (2, "")
    message = spoken(err)
    assert len(message) <= 3, err
    assert message[0].startswith("fcache: --scheduler tcp://127.0.0.1:9 does not answer")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist; expected a TOML file"),
        ("jobs = [", "is not a readable TOML file"),
        ("memory = '1GB'", "jobs=None; expected the number"),
        ("jobs = 0", "jobs=0"),
        ("jobs = 1", "memory"),
        ("jobs = 1\nmemory = '1GB'\nqueu = 'x'", "queu"),
    ],
)
def test_a_slurm_file_that_says_too_little_is_refused(
    videos: Path, tmp_path: Path, slurm: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "slurm.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        extract(videos, tmp_path / "cache", scheduler=f"slurm:{file}")
    assert len(str(caught.value).splitlines()) <= 3


def test_an_unknown_scheduler_names_those_there_are(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of: local, inline, tcp://HOST:PORT, slurm:FILE"):
        extract(videos, tmp_path / "cache", scheduler="kubernetes")


SBATCH = """#!/bin/bash
cp "$1" "{folder}/job.sh"
setsid bash "{folder}/job.sh" >"{folder}/job.log" 2>&1 </dev/null &
echo $! >"{folder}/pid"
echo "Submitted batch job 7"
"""
SCANCEL = """#!/bin/bash
kill -KILL -- "-$(cat "{folder}/pid")"
touch "{folder}/cancelled"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``sbatch`` and ``scancel`` that run the job script on this machine."""
    (folder := tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def slurm_file(tmp_path: Path) -> Path:
    file = tmp_path / "slurm.toml"
    file.write_text(
        f"jobs = 1\ncores = 1\nmemory = '4GB'\ninterface = 'lo'\n"
        f"local_directory = '{tmp_path}/scratch'\npython = '{sys.executable}'\n"
    )
    return file


def test_slurm_jobs_do_the_work_and_are_cancelled(
    videos: Path, wanted: dict[str, str], tmp_path: Path, slurm: Path
) -> None:
    cache = tmp_path / "cache"
    code, _, err = fcache(
        "extract",
        videos,
        "--cache",
        cache,
        "--scheduler",
        f"slurm:{slurm_file(tmp_path)}",
        *words(),
    )
    assert (code, spoken(err)) == (0, []), err
    assert shard_hashes(cache) == wanted
    assert (slurm / "cancelled").exists()
    script = (slurm / "job.sh").read_text()
    assert "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False\n" in script


def test_an_sbatch_that_refuses_is_told(videos: Path, tmp_path: Path, slurm: Path) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'invalid partition: gpuu' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="invalid partition: gpuu"):
        extract(videos, tmp_path / "cache", scheduler=f"slurm:{slurm_file(tmp_path)}")
    assert open_cache(tmp_path / "cache").view().videos == []


def test_a_machine_without_sbatch_is_told(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="found no 'sbatch'"):
        extract(videos, tmp_path / "cache", scheduler=f"slurm:{slurm_file(tmp_path)}")
