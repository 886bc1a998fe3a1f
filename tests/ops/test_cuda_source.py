"""The CUDA source, where nvcc is: it compiles for our users' devices, spills nothing, and loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcache.errors import KernelError
from fcache.ops.build import DEFAULT_ARCHS, TARGETS, Compiler, command, find_compiler
from fcache.ops.library import OPS

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.fixture(scope="module")
def nvcc() -> Compiler:
    if torch.version.cuda is None:
        pytest.skip("torch has no CUDA to link against")
    try:
        return find_compiler("cuda")
    except KernelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def library(nvcc: Compiler, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The library for both architectures, and what the assembler says of its kernels."""
    out = tmp_path_factory.mktemp("cuda") / TARGETS["cuda"].file
    words = command(TARGETS["cuda"], nvcc, out, DEFAULT_ARCHS)
    done = subprocess.run(
        [*words, "-Xptxas=-v", "--threads=2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


def test_the_forward_kernels_spill_nothing(library: tuple[Path, str]) -> None:
    spilling, seen = [], set()
    entry = ("", "")
    for line in library[1].splitlines():
        if found := ENTRY.search(line):
            entry = (found[1], found[2])
        elif (found := SPILLS.search(line)) and "forward" in entry[0]:
            seen.add(entry[1])
            if found[1] != "0" or found[2] != "0":
                spilling.append((*entry, line.strip()))
    assert seen == {f"sm_{arch}" for arch in DEFAULT_ARCHS}
    assert spilling == []


def test_it_loads_without_a_gpu_and_brings_every_op(library: tuple[Path, str]) -> None:
    code = (
        "import sys, torch, fcache.ops; torch.ops.load_library(sys.argv[1]);"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key;"
        "print(*(name for name in sys.argv[2:] if has(f'fcache::{name}', 'CUDA')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, library[0], *OPS],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout.split() == list(OPS)
