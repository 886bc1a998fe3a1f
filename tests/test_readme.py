"""The blocks of the README and of docs/store.md do what they say, run as they are written."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcache.cache import open_cache
from fcache.data.labels import LabelReader
from fcache.demo.scene import render_set

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_FRAMES = 2


def block(page: str, heading: str, language: str) -> str:
    """The first block of a language below a heading of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no {language} block below '{heading}'"
    return found.group(1)


def run(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {"OMP_NUM_THREADS": "1", "FCACHE_NO_PROGRESS": "1", **env}
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README supposes: H.264 files in ``videos/``, a mask of each frame in ``masks/``."""
    rendered, folder = tmp_path_factory.mktemp("rendered"), tmp_path_factory.mktemp("readme")
    manifest = render_set(
        rendered, num_train=2, num_val=1, num_frames=NUM_FRAMES, height=64, width=64, fps=4, seed=3
    )
    (rendered / "videos").rename(folder / "videos")
    labels = LabelReader.from_manifest(manifest)
    for video in manifest.videos:
        masks = folder / "masks" / str(video.split) / video.id
        masks.mkdir(parents=True)
        for name in (f"{frame:05d}" for frame in range(NUM_FRAMES)):
            values = labels.semantic(video.id, name, video.split)
            Image.fromarray(values).save(masks / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the six lines print; the folder holds their cache from then on."""
    command = tmp_path_factory.mktemp("bin") / "fcache"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fcache "$@"\n')
    command.chmod(0o755)
    lines = block("README.md", "Six lines to a cache", "console")
    assert len(lines.splitlines()) == 6
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    # The bounds of the machine: one worker's thread, and no network.
    done = run(["bash", "-euc", lines], folder, PATH=path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_six_lines_make_a_cache_and_say_what_is_in_it(folder: Path, printed: str) -> None:
    cache = open_cache(folder / "cache")
    assert len(cache.videos) == 3
    assert all(len(cache.view().frames(video)) == NUM_FRAMES for video in cache.videos)
    plan, rest = printed.split("Remove --plan to start.")
    assert "3 to do (6 frames)" in plan
    assert "extracted 6 frames" in rest
    assert "UNTRAINED" in rest
    assert ": 0 problems" in rest
    assert (folder / "cache.probe.png").is_file()


def test_the_probe_of_the_six_lines_beats_the_class_prior(printed: str) -> None:
    found = re.search(
        r"mIoU ([\d.]+) on 2 frames, trained on 4 \(class prior alone: (.*?);", printed
    )
    assert found, printed
    assert float(found.group(1)) > 2 * float(found.group(2))


def test_a_head_of_ones_own_trains_as_the_readme_writes_it(
    folder: Path, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "head.py"
    script.write_text(block("README.md", "A head of your own, in twenty lines", "python"))
    assert len(script.read_text().splitlines()) <= 20
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    left = runpy.run_path(str(script))
    torch.manual_seed(0)
    start = torch.nn.Conv2d(left["width"], left["data"].labels.num_categories, 1).weight
    assert len(left["data"]) == 2 * NUM_FRAMES
    assert bool(torch.isfinite(left["loss"]))
    assert not torch.equal(left["head"].weight, start)


def test_zarr_alone_reads_what_fcache_wrote(folder: Path, printed: str, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['fcache', 'torch']))\n"
    text = block("docs/store.md", "Read it with zarr alone", "python")
    kept = f"import numpy; numpy.save({str(tmp_path / 'stage_3.npy')!r}, stage_3)\n"
    kept += "print(video, frame['frame_name'], sep='\\n')\n"
    done = run([sys.executable, "-c", blocked + text + kept], folder)
    assert done.returncode == 0, done.stderr
    video, name = done.stdout.splitlines()
    cache = open_cache(folder / "cache")
    at = cache.view().frames(video).names.index(name)
    assert np.array_equal(np.load(tmp_path / "stage_3.npy"), cache.read(video, [at]).stages[3][0])


def test_the_kernels_are_built_and_told_of_as_the_readme_writes_it(tmp_path: Path) -> None:
    lines = block("README.md", "Deformable attention", "console").splitlines()
    ahead, planned, doctor = (line.partition("#")[0].split()[1:] for line in lines)
    fcache = [sys.executable, "-m", "fcache"]
    made = run([*fcache, *ahead, "--no-cuda", "--out", str(tmp_path)], tmp_path)
    assert made.returncode == 0, made.stderr
    assert "loads and runs" in made.stdout
    told = run([*fcache, *doctor], tmp_path, FCACHE_KERNEL_CACHE=str(tmp_path))
    assert told.returncode == 0, told.stderr
    assert f"compiled: '{tmp_path}" in " ".join(told.stdout.split())
    if shutil.which("nvcc"):
        plan = run([*fcache, *planned], tmp_path)
        assert plan.returncode == 0, plan.stderr
        assert "code=sm_90" in plan.stdout
