"""Processes of their own, for what is decided once per process, and compilers to lead astray."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fcache.ops import library
from tests.ops.cases import require_compiled

# Runs the op, says how, and whether the reference agrees.
CODE = """
import json, sys, torch
from fcache.ops import library, ms_deform_attn, reference
# A GPU machine may have torch, numpy, scipy and safetensors and nothing else.
assert not {"pydantic", "typer", "rich", "zarr", "PIL", "timm"} & sys.modules.keys()
torch.manual_seed(0)
value, points = torch.randn(1, 6, 1, 4), torch.rand(1, 3, 1, 2)
offsets, logits = torch.randn(1, 3, 1, 1, 2, 2), torch.randn(1, 3, 1, 2)
out = ms_deform_attn(value, [(2, 3)], points, offsets, logits)
plain = reference.ms_deform_attn(value, [2, 3], points, offsets, logits)
use = library.kernel_use("cpu")
agrees = torch.allclose(out, plain, rtol=1e-4, atol=1e-5)
print(json.dumps([use.path, use.why, str(use.library), agrees]))
"""


def start(**env: str | Path) -> subprocess.Popen[str]:
    """Starts a process that uses the op, under the given variables and no others of ours."""
    ours = {"FCACHE_KERNELS", "FCACHE_KERNEL_CACHE", "CXX"}
    rest = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.Popen(
        [sys.executable, "-c", CODE],
        env={**rest, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in env.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str, str, str]:
    """Returns path, reason and library of a process that used the op, and what it complained of."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    path, why, file, agrees = json.loads(out)
    assert agrees
    return path, why, file, err


@functools.cache
def compiled_library() -> Path:
    """The library of this process, built from the sources as they are; skips without a compiler."""
    require_compiled()
    use = library.kernel_use("cpu")
    assert use.library is not None, use.why
    return use.library


def compiler(folder: Path, *steps: str, version: str = "test compiler 1") -> Path:
    """Writes a compiler that says its version, and otherwise does some shell; ``$out`` is -o's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "c++"
    lines = [
        "#!/bin/sh",
        f'case "$*" in *--version*) echo "{version}"; exit 0;; esac',
        'while [ "$#" -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done',
        *steps,
    ]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def copying_compiler(folder: Path, seconds: float = 0, **options: Any) -> Path:
    """Writes a compiler that takes its time and then gives the library of this process."""
    log = folder / "runs"
    return compiler(
        folder,
        f"echo run >> {log}",
        f"sleep {seconds}",
        f'cp {compiled_library()} "$out"',
        **options,
    )


def num_runs(folder: Path) -> int:
    """How often the compiler of a folder compiled."""
    log = folder / "runs"
    return len(log.read_text().splitlines()) if log.exists() else 0
