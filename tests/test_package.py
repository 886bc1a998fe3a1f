"""The wheel: what is in it, and that it works from an empty folder, without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    # A copy of what git tracks, so that nothing lying about gets in, and nothing is left behind.
    source = folder / "source"
    source.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    for name in filter(None, files.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    env = {name: value for name, value in os.environ.items() if name not in {"CC", "CXX"}}
    subprocess.run(command, cwd=source, check=True, env=env, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def test_the_wheel_is_pure_and_carries_the_data_rooms(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("pipelines", "manifests", "kernels"):
        files = (path for path in (ROOT / room).iterdir() if path.is_file())
        shipped = {path.name for path in files if path.suffix != ".so"}  # `fcache build` puts them
        assert shipped
        assert {f"fcache/{room}/{name}" for name in shipped} <= names
    assert "fcache/py.typed" in names


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fcache"}


def test_every_package_folder_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fcache").rglob("*.py")}
    assert modules <= names


def test_the_installed_wheel_finds_its_recipes_and_manifests(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True)
    code = (
        "import fcache, fcache.config as c, fcache.manifest as m; print(fcache.__file__);"
        "print(*c.recipe_names()); print(*m.manifest_names())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    where, recipes, manifests = done.stdout.splitlines()
    assert Path(where).is_relative_to(target)
    assert {"extract", "probe"} <= set(recipes.split())
    assert {"vipseg", "vspw", "coco_panoptic", "camvid"} <= set(manifests.split())
