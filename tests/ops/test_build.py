"""What decides a library's name, which compiler is taken, and what is told of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fcache.errors import KernelError
from fcache.ops import build as ops
from fcache.ops.stamp import Stamp, put_stamped, read_stamp
from tests.ops.running import compiler

CPU, CUDA = ops.TARGETS["cpu"], ops.TARGETS["cuda"]
STAMP = Stamp("0" * 64, "g++ 12", ("80", "90"))


def test_a_stamped_file_keeps_its_bytes_in_front(tmp_path: Path) -> None:
    put_stamped(b"library", STAMP, tmp_path / "a.so")
    assert (tmp_path / "a.so").read_bytes().startswith(b"library")
    assert read_stamp(tmp_path / "a.so") == STAMP
    assert [path.name for path in tmp_path.iterdir()] == ["a.so"]


def test_no_changed_byte_and_no_cut_keeps_a_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.so"
    put_stamped(bytes(range(64)), STAMP, path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        assert read_stamp(path) is None
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_stamp(path) is None


@pytest.mark.parametrize("content", [b"", b"short", b"\x7fELF" + bytes(100)])
def test_a_foreign_file_has_no_stamp(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(content)
    assert read_stamp(tmp_path / "a.so") is None


def test_a_stamp_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.so").mkdir()
    with pytest.raises(OSError, match=re.escape("a.so")):
        put_stamped(b"library", STAMP, tmp_path / "a.so")
    assert [path.name for path in tmp_path.iterdir()] == ["a.so"]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the native sources, to be changed."""
    folder = tmp_path / "kernels"
    shutil.copytree(ops.source_folder(), folder)
    monkeypatch.setattr(ops, "source_folder", lambda: folder)
    return folder


def test_the_key_follows_sources_flags_and_compiler(sources: Path) -> None:
    gcc = ops.Compiler(("g++",), "g++ 12")
    keys = [ops.build_key(CPU, gcc, ())]
    (sources / "_ms_deform_attn_cpu.so").write_bytes(b"")  # no source
    (sources / "README.md").write_text("other words")
    assert ops.build_key(CPU, gcc, ()) == keys[0]
    assert ops.build_key(CPU, ops.Compiler(("/usr/bin/g++",), "g++ 12"), ()) == keys[0]
    keys.append(ops.build_key(CPU, ops.Compiler(("g++",), "g++ 13"), ()))
    keys.append(ops.build_key(CPU, ops.Compiler(("g++", "-m32"), "g++ 12"), ()))
    keys.append(ops.build_key(CUDA, gcc, ("80",)))
    keys.append(ops.build_key(CUDA, gcc, ("80", "90")))
    header = sources / "ms_deform_attn.h"
    header.write_text(header.read_text() + "\n")
    keys.append(ops.build_key(CPU, gcc, ()))
    (sources / "more.inc").touch()
    keys.append(ops.build_key(CPU, gcc, ()))
    assert len(set(keys)) == len(keys)


def test_no_flag_gives_up_denormals_or_nans() -> None:
    for flags in (ops.CPU_FLAGS, ops.CUDA_FLAGS):
        assert not {"-ffast-math", "-Ofast", "-ffinite-math-only", "--use_fast_math"} & set(flags)
        assert f"-DTORCH_TARGET_VERSION={ops.TORCH_TARGET}" in flags


def test_cxx_decides_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiler(tmp_path, version="ours 3")
    monkeypatch.setenv("CXX", f"{path} -m64")
    assert ops.find_compiler("cpu") == ops.Compiler((str(path), "-m64"), "ours 3")


def test_nvcc_is_taken_from_cuda_home_before_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiler(tmp_path / "bin", version="Cuda compilation tools, release 13.0, V13.0.88")
    path.rename(path.with_name("nvcc"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = ops.find_compiler("cuda")
    assert found.words == (str(tmp_path / "bin" / "nvcc"),)
    assert "release 13.0" in found.version
    monkeypatch.setenv("CXX", "g++-12")
    assert ops.find_compiler("cuda").words[1:] == ("-ccbin", "g++-12")


def test_a_compiler_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(KernelError, match="the compiler '/no/such/compiler' does not start"):
        ops.find_compiler("cpu")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["x.cpp: In function", "x.cpp:1:2: error: no", "x.cpp:9: error: yes"], "1:2: error: no"),
        (["ld: cannot find -ltorch_cuda", "collect2: error: ld returned 1"], "-ltorch_cuda"),
        (["Killed"], "Killed"),
        ([], "exit code 3 without a word"),
    ],
)
def test_a_failed_build_tells_the_first_error(
    lines: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [f'echo "{line}" >&2' for line in lines]
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "bin", *steps, "exit 3")))
    with pytest.raises(KernelError) as error:
        ops.build("cpu", tmp_path / "out")
    assert error.value.message.endswith(told)
    assert list((tmp_path / "out").iterdir()) == []


def test_devices_that_are_too_old_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path / "bin").rename(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(KernelError, match=r"need compute capability 8\.0; asked for 75"):
        ops.build("cuda", tmp_path / "out", ["75"])


def test_the_cuda_command_has_code_for_each_architecture_and_for_later_ones() -> None:
    words = ops.command(CUDA, ops.Compiler(("nvcc",), ""), Path("o.so"), ["90", "80"])
    assert [word for word in words if word.startswith("-gencode")] == [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_the_cache_is_where_the_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FCACHE_KERNEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ops.cache_folder() == tmp_path / "fcache" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ops.cache_folder() == tmp_path / "home" / ".cache" / "fcache" / "kernels"
    monkeypatch.setenv("FCACHE_KERNEL_CACHE", str(tmp_path / "mine"))
    assert ops.cache_folder() == tmp_path / "mine"
