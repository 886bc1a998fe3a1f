"""``fcache build``: what it prints, where the library is then found, and how it fails."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fcache.ops import build as ops
from fcache.ops.stamp import read_stamp
from tests.cli.running import message, run, run_json
from tests.ops.running import compiler, copying_compiler, finish, start

FILE = ops.TARGETS["cpu"].file


def test_what_is_built_ahead_of_time_is_found_first_and_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(copying_compiler(tmp_path / "bin")))
    out = tmp_path / "our libraries"
    done = subprocess.run(
        [sys.executable, "-m", "fcache", "build", "--no-cuda", "--out", str(out)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"cpu  {out / FILE}  ")
    assert first.endswith(" s, loads and runs")
    assert second == f"Found first where FCACHE_KERNEL_CACHE='{out}' is set."
    assert [path.name for path in out.iterdir()] == [FILE]
    path, why, file, err = finish(start(PATH="", FCACHE_KERNEL_CACHE=out))
    assert (path, file, err) == ("compiled", str(out / FILE), "")
    assert why == f"'{out / FILE}' (test compiler 1)"


def test_the_plan_is_a_command_to_paste_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "bin")))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    code, out, _ = run("build", "--plan", "--no-cuda", "--out", tmp_path / "out")
    assert code == 0
    words = shlex.split(out)
    assert words[0] == str(tmp_path / "bin" / "c++")
    assert words[words.index("-o") + 1] == str(tmp_path / "out" / FILE)
    assert not (tmp_path / "out").exists()
    content = run_json("build", "--plan", "--no-cuda", "--out", tmp_path / "out")
    assert content == {"commands": [words]}


def test_a_compiler_that_fails_ends_with_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiler(tmp_path / "bin", 'echo "a.h:3: fatal error: no b.h" >&2', "exit 1")
    monkeypatch.setenv("CXX", str(path))
    code, _, err = run("build", "--no-cuda", "--out", tmp_path / "out")
    assert code == 1
    assert message(err) == (
        f"fcache: '{path}' (test compiler 1) failed to compile ms_deform_attn_cpu.cpp: "
        "a.h:3: fatal error: no b.h"
    )


def test_without_any_compiler_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    code, _, err = run("build", "--no-cuda")
    assert code == 1
    assert message(err).startswith("fcache: there is no C++ compiler")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--arch", "80", "--no-cuda"), "--arch 80 is for CUDA; expected it without --no-cuda."),
        (("--arch", "80,hopper"), "--arch 80,hopper has 'hopper'; expected numbers such as 80,90."),
        (("--arch", ""), "--arch  has ''; expected numbers such as 80,90."),
    ],
)
def test_wrong_architectures_are_a_usage_error(options: tuple[str, ...], text: str) -> None:
    code, _, err = run("build", *options)
    assert code == 2
    assert text in message(err)


def test_a_folder_of_somebody_else_is_told_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that is not there cannot be written by root either.
    monkeypatch.setattr(ops, "source_folder", lambda: tmp_path / "site-packages")
    code, _, err = run("build", "--no-cuda")
    assert code == 2
    assert f"'{tmp_path / 'site-packages'}', where fcache is installed, cannot be" in err
    assert f"Next: fcache build --out {ops.cache_folder()}" in err


def test_json_says_what_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(copying_compiler(tmp_path / "bin")))
    (row,) = run_json("build", "--no-cuda", "--out", tmp_path / "out")["libraries"]
    assert (row["device"], row["path"]) == ("cpu", str(tmp_path / "out" / FILE))
    assert row["tried"] == "loads and runs"
    stamp = read_stamp(tmp_path / "out" / FILE)
    assert stamp is not None
    assert stamp.compiler == "test compiler 1"
