"""Where libraries come from: the cache and its accidents, races, modes, and what machines lack."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fcache.errors import ConfigError, KernelError
from fcache.ops import build, library, schemas
from fcache.ops.build import TARGETS, command, find_compiler, source_key
from fcache.ops.stamp import Stamp, put_stamped, read_stamp
from tests.ops.running import (
    compiled_library,
    compiler,
    copying_compiler,
    finish,
    num_runs,
    start,
)

CPU = TARGETS["cpu"]


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The state of a process that has not used the op."""
    monkeypatch.setattr(library, "_decided", {})
    for name in ("FCACHE_KERNELS", "FCACHE_KERNEL_CACHE", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_processes_that_start_at_once_all_get_the_library_and_leave_one_file(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    slow = copying_compiler(tmp_path / "bin", seconds=1.5)
    processes = [start(CXX=slow, FCACHE_KERNEL_CACHE=cache) for _ in range(3)]
    for process in processes:
        path, why, file, err = finish(process)
        assert path == "compiled", why + err
        assert Path(file).is_relative_to(cache)
    assert files_below(cache) == [CPU.file]
    (built,) = cache.rglob(CPU.file)
    assert read_stamp(built) == Stamp(source_key(CPU), "test compiler 1")
    runs = num_runs(tmp_path / "bin")
    assert 1 <= runs <= 3

    # The next process takes what is there; a damaged file is built again, and that is said.
    path, _, file, err = finish(start(CXX=slow, FCACHE_KERNEL_CACHE=cache))
    assert (path, file, err) == ("compiled", str(built), "")
    assert num_runs(tmp_path / "bin") == runs
    built.write_bytes(built.read_bytes()[:-4000])
    path, _, file, err = finish(start(CXX=slow, FCACHE_KERNEL_CACHE=cache))
    assert (path, file) == ("compiled", str(built))
    assert err == f"'{built}' is damaged or not of fcache; it is passed over.\n"
    assert num_runs(tmp_path / "bin") == runs + 1
    assert read_stamp(built) is not None


def test_a_cache_that_cannot_be_written_costs_one_line_and_a_build(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path, why, _, err = finish(
        start(
            CXX=copying_compiler(tmp_path / "bin"),
            FCACHE_KERNEL_CACHE=tmp_path / "file" / "below",
            TMPDIR=tmp_path,
        )
    )
    assert (path, why) == ("compiled", "built for this process only")
    (line,) = err.splitlines()
    assert line.startswith("The kernel cache cannot be written (")
    assert files_below(tmp_path) == ["c++", "file", "runs"]


def test_without_a_compiler_what_was_built_before_is_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "fcache" / "kernels" / "of-another-machine"
    cache.mkdir(parents=True)
    shutil.copy(compiled_library(), cache)
    path, _, file, err = finish(start(PATH="", XDG_CACHE_HOME=tmp_path / "cache"))
    assert (path, file, err) == ("compiled", str(cache / CPU.file), "")


def test_an_empty_path_and_an_empty_cache_leave_the_reference_and_one_line(tmp_path: Path) -> None:
    path, why, _, err = finish(start(PATH="", XDG_CACHE_HOME=tmp_path))
    assert path == "reference"
    assert why == "there is no C++ compiler: neither CXX is set nor are g++ or c++ on PATH"
    (line,) = err.splitlines()
    assert line.startswith(f"No compiled kernels for cpu: {why}. ")
    assert not any(tmp_path.iterdir())


BROKEN = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <vector>
using torch::stable::Tensor;
Tensor fused(const Tensor&, std::vector<int64_t>, const Tensor&, const Tensor&, const Tensor&) {
  STD_TORCH_CHECK(false, "the driver is too old");
}
Tensor sampled(const Tensor&, std::vector<int64_t>, const Tensor&, const Tensor&) {
  STD_TORCH_CHECK(false, "the driver is too old");
}
STABLE_TORCH_LIBRARY_IMPL(fcache, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&fused));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&fused));
  m.impl("ms_deform_attn_sampled", TORCH_BOX(&sampled));
  m.impl("ms_deform_attn_sampled_backward", TORCH_BOX(&sampled));
}
"""


def test_a_library_that_loads_and_fails_gives_way_to_the_reference(tmp_path: Path) -> None:
    compiled_library()
    source = tmp_path / "broken.cpp"
    source.write_text(BROKEN)
    words = command(CPU, find_compiler("cpu"), tmp_path / "broken.so")
    at = next(i for i, word in enumerate(words) if word.endswith(CPU.source))
    words[at] = str(source)
    subprocess.run([*words, "-O0"], check=True)
    stamp = Stamp(source_key(CPU), "test compiler 1")
    put_stamped((tmp_path / "broken.so").read_bytes(), stamp, tmp_path / CPU.file)
    path, why, _, err = finish(start(FCACHE_KERNEL_CACHE=tmp_path, CXX="/no/such/compiler"))
    assert path == "reference"
    assert "'/no/such/compiler' does not start" in why
    first, second = err.splitlines()
    assert "is passed over: it fails on a tiny input: " in first
    assert "the driver is too old" in first
    assert second.startswith("No compiled kernels for cpu: the compiler '/no/such/compiler'")


def test_a_file_that_is_no_library_is_passed_over_even_with_a_stamp(
    tmp_path: Path, undecided: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_stamped(b"no ELF", Stamp(source_key(CPU), "test compiler 1"), tmp_path / CPU.file)
    undecided.setenv("FCACHE_KERNEL_CACHE", str(tmp_path))
    undecided.setenv("CXX", "/no/such/compiler")
    use = library.kernel_use("cpu")
    assert use.path == "reference"
    assert "is passed over: it does not load" in caplog.messages[0]


def test_libraries_of_other_sources_are_not_used(
    tmp_path: Path, undecided: pytest.MonkeyPatch
) -> None:
    content = compiled_library().read_bytes()
    put_stamped(content, Stamp("0" * 64, "test compiler 1"), tmp_path / CPU.file)
    undecided.setenv("FCACHE_KERNEL_CACHE", str(tmp_path))
    assert list(library._fitting(CPU)) == []
    put_stamped(content, Stamp(source_key(CPU), "test compiler 1"), tmp_path / CPU.file)
    ((path, stamp),) = library._fitting(CPU)
    assert (path, stamp.compiler) == (tmp_path / CPU.file, "test compiler 1")


def test_a_library_beside_the_sources_goes_before_the_cache(
    tmp_path: Path, undecided: pytest.MonkeyPatch
) -> None:
    content, stamp = compiled_library().read_bytes(), Stamp(source_key(CPU), "test compiler 1")
    installed, cache = tmp_path / "kernels", tmp_path / "fcache" / "kernels"
    shutil.copytree(build.source_folder(), installed)
    for module in (build, library):
        undecided.setattr(module, "source_folder", lambda: installed)
    undecided.setenv("XDG_CACHE_HOME", str(tmp_path))
    undecided.setenv("CXX", str(compiler(tmp_path / "bin")))
    built = cache / build.build_key(CPU, find_compiler("cpu"), ()) / CPU.file
    built.parent.mkdir(parents=True)
    for path in (installed / CPU.file, built):
        put_stamped(content, stamp, path)
    assert [path for path, _ in library._fitting(CPU)] == [installed / CPU.file, built]


@pytest.mark.parametrize(
    ("archs", "needed", "covers"),
    [
        (("80", "90"), 80, True),
        (("80", "90"), 86, True),
        (("80", "90"), 100, True),  # translated by the driver
        (("90",), 80, False),
        (("86",), 80, False),
    ],
)
def test_code_for_an_architecture_serves_later_ones(
    archs: tuple[str, ...], needed: int, covers: bool
) -> None:
    assert library._covers(archs, needed) == covers


def test_a_failed_build_is_one_line_with_the_compilers_first_error(
    tmp_path: Path, undecided: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = compiler(
        tmp_path, 'echo "In file included" >&2', 'echo "a.h:3: fatal error: no b.h" >&2', "exit 1"
    )
    undecided.setenv("CXX", str(failing))
    undecided.setenv("FCACHE_KERNEL_CACHE", str(tmp_path / "cache"))
    why = (
        f"'{failing}' (test compiler 1) failed to compile {CPU.source}: a.h:3: fatal error: no b.h"
    )
    for _ in range(2):
        assert not library.load("cpu")
    assert caplog.messages == [
        (
            f"No compiled kernels for cpu: {why}. Deformable attention runs in plain PyTorch, "
            "many times slower."
        )
    ]
    assert library.kernel_use("cpu").why == why
    assert files_below(tmp_path / "cache") == []


def test_require_raises_what_is_missing_instead_of_running_slowly(
    tmp_path: Path, undecided: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undecided.setenv("FCACHE_KERNELS", "require")
    undecided.setenv("FCACHE_KERNEL_CACHE", str(tmp_path))
    undecided.setenv("PATH", "")
    for _ in range(2):
        with pytest.raises(KernelError) as told:
            library.load("cpu")
        assert told.value.message.startswith(
            "FCACHE_KERNELS=require, and there are no compiled kernels for cpu: there is no C++"
        )
        assert told.value.run == "fcache build"
    assert library.kernel_use("cpu").path == "reference"
    assert caplog.messages == []


def test_off_builds_nothing_and_says_why(tmp_path: Path, undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv("CXX", str(copying_compiler(tmp_path / "bin")))
    undecided.setenv("FCACHE_KERNELS", "off")
    assert not library.load("cpu")
    assert str(library.kernel_use("cpu")) == "cpu: PyTorch reference, FCACHE_KERNELS=off"
    assert num_runs(tmp_path / "bin") == 0


def test_an_unknown_mode_is_told_with_the_nearest(undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv("FCACHE_KERNELS", "requires")
    with pytest.raises(ConfigError, match="FCACHE_KERNELS=requires is none of: auto, off, require"):
        library.load("cpu")


def test_a_device_without_kernels_runs_the_reference(undecided: pytest.MonkeyPatch) -> None:
    assert not library.load("xpu")
    assert library._decided["xpu"].why == "there are no kernels for 'xpu'"


def test_the_op_itself_raises_under_require(tmp_path: Path, undecided: pytest.MonkeyPatch) -> None:
    # Another device of the same machine: the CPU's kernels may be loaded already.
    undecided.setenv("FCACHE_KERNELS", "require")
    undecided.setitem(
        library._decided, "cpu", library.KernelUse("cpu", "reference", "there is nothing")
    )
    value = torch.ones(1, 1, 1, 1)
    with pytest.raises(KernelError, match="there is nothing"):
        schemas._load_or_refer("ms_deform_attn_sampled")(value, [1, 1], value, value)
