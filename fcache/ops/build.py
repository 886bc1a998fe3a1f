"""Compiles the native sources with the system's own compiler, into files that any torch loads.

Only LibTorch's stable ABI is used, so a library is bound neither to the version of torch (2.10 and
later) nor to that of Python. Nothing is compiled when fcache is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from fcache.errors import KernelError
from fcache.ops.stamp import Stamp, put_stamped

TORCH_TARGET = "0x020a000000000000"  # the stable ABI as of torch 2.10
# Not -ffast-math: gcc then links code that flushes denormals to zero in the whole process.
CPU_FLAGS = (
    "-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fassociative-math", "-freciprocal-math", "-ffp-contract=fast", "-fPIC", "-shared",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
)  # fmt: skip
CUDA_FLAGS = (
    "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC", "-shared",
    "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
)  # fmt: skip
DEFAULT_ARCHS = ("80", "90")
LEAST_ARCH = 80


@dataclass(frozen=True, slots=True)
class Target:
    """One library: its file, what it is compiled from and how."""

    device: str
    file: str
    source: str
    suffixes: tuple[str, ...]
    flags: tuple[str, ...]
    links: tuple[str, ...]


TARGETS = {
    "cpu": Target(
        "cpu",
        "_ms_deform_attn_cpu.so",
        "ms_deform_attn_cpu.cpp",
        (".cpp", ".inc", ".h"),
        CPU_FLAGS,
        ("-ltorch_cpu",),
    ),
    "cuda": Target(
        "cuda",
        "_ms_deform_attn_cuda.so",
        "ms_deform_attn_cuda.cu",
        (".cu", ".cuh", ".h"),
        CUDA_FLAGS,
        ("-ltorch_cuda", "-ltorch_cpu"),
    ),
}


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler: the words that start it, and the first line of its version."""

    words: tuple[str, ...]
    version: str


def source_folder() -> Path:
    """Returns the folder of the native sources, in an installed wheel or in a checkout."""
    packaged = Path(str(resources.files("fcache"))) / "kernels"
    return packaged if packaged.is_dir() else packaged.parent.parent / "kernels"


def cache_folder() -> Path:
    """Returns where libraries built at first use are kept; it need not be there.

    Raises:
        OSError: Nothing says where, and the user has no home.
    """
    if chosen := os.environ.get("FCACHE_KERNEL_CACHE"):
        return Path(chosen).absolute()
    # The XDG specification: a relative value is to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"there is no folder for caches: {error}") from None
    return base / "fcache" / "kernels"


def source_key(target: Target) -> str:
    """Returns a hash of everything but the compiler that decides what is in a library."""
    folder = source_folder()
    digest = hashlib.sha256(repr((target, sys.platform, platform.machine())).encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in target.suffixes:
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def build_key(target: Target, compiler: Compiler, archs: Sequence[str]) -> str:
    """Returns the name of the cache's folder for what this compiler makes of the sources."""
    words = f"{source_key(target)} {compiler.version} {compiler.words[1:]} {sorted(archs)}"
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def find_compiler(device: str) -> Compiler:
    """Returns the compiler for a device: ``CXX``, else g++ or c++; nvcc of CUDA_HOME or PATH.

    Raises:
        KernelError: There is none, or it does not start.
    """
    words = _nvcc() if device == "cuda" else _cxx()
    try:
        done = subprocess.run(
            [*words, "--version"], capture_output=True, text=True, check=True, env=_plain_words()
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise KernelError(f"the compiler '{words[0]}' does not start: {error}") from None
    lines = done.stdout.strip().splitlines() or [""]
    # nvcc says who it is first and its version last but one.
    version = next((line for line in lines if "release" in line), lines[0])
    return Compiler(words, version)


def default_archs() -> tuple[str, ...]:
    """Returns the CUDA architectures of the devices here; without any, those of our users."""
    if not torch.cuda.is_available():
        return DEFAULT_ARCHS
    found = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return tuple(sorted({f"{major}{minor}" for major, minor in found}, key=int))


def command(
    target: Target, compiler: Compiler, out: Path, archs: Sequence[str] = DEFAULT_ARCHS
) -> list[str]:
    """Returns the command that compiles a library."""
    at = Path(torch.__file__).parent
    codes = []
    if target.device == "cuda":
        last = max(archs, key=int)  # for it also what later devices can translate
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{last},code=compute_{last}")
    return [
        *compiler.words,
        *target.flags,
        *codes,
        "-isystem",
        str(at / "include"),
        str(source_folder() / target.source),
        "-o",
        str(out),
        f"-L{at / 'lib'}",
        *target.links,
    ]


def planned(device: str, folder: Path, archs: Sequence[str] | None = None) -> list[str]:
    """Returns the command that ``build`` would run, but for the temporary folder.

    Raises:
        KernelError: There is no compiler.
    """
    target = TARGETS[device]
    archs = tuple(archs or default_archs())
    return command(target, find_compiler(device), folder / target.file, archs)


def build(device: str, folder: Path, archs: Sequence[str] | None = None) -> Path:
    """Compiles the library of a device into a folder and returns its path.

    Any number of processes may do this at once; each puts a whole file in place.

    Raises:
        KernelError: There is no compiler, or it fails; the text has its first error line.
        OSError: The folder cannot be made or written.
    """
    target = TARGETS[device]
    archs = tuple(archs or default_archs()) if device == "cuda" else ()
    compiler = find_compiler(device)
    if any(int(arch) < LEAST_ARCH for arch in archs):
        raise KernelError(
            f"the kernels need compute capability {LEAST_ARCH / 10}; asked for {', '.join(archs)}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    stamp = Stamp(source_key(target), compiler.version, archs)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as temporary:
        out = Path(temporary) / target.file
        done = subprocess.run(
            command(target, compiler, out, archs),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=_plain_words(),
        )
        if done.returncode:
            raise KernelError(
                f"'{compiler.words[0]}' ({compiler.version}) failed to compile {target.source}: "
                f"{_first_error(done.stderr + done.stdout, done.returncode)}"
            )
        put_stamped(out.read_bytes(), stamp, folder / target.file)
    return folder / target.file


def _cxx() -> tuple[str, ...]:
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return tuple(chosen)
    for name in ("g++", "c++"):
        if found := shutil.which(name):
            return (found,)
    raise KernelError("there is no C++ compiler: neither CXX is set nor are g++ or c++ on PATH")


def _nvcc() -> tuple[str, ...]:
    # The toolkit is never guessed from where nvcc lies: that may be a script outside of it.
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    for home in filter(None, homes):
        if found := shutil.which("nvcc", path=str(Path(home) / "bin")):
            return (found, *_host_compiler())
    if found := shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin"):
        return (found, *_host_compiler())
    raise KernelError(
        "there is no CUDA compiler: nvcc is neither below CUDA_HOME nor on PATH "
        "nor in /usr/local/cuda/bin"
    )


def _host_compiler() -> tuple[str, ...]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    return ("-ccbin", chosen[0]) if len(chosen) == 1 else ()


def _plain_words() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _first_error(output: str, code: int) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    pattern = re.compile(r"\berror\b|undefined reference|cannot find|not found", re.IGNORECASE)
    errors = [line for line in lines if pattern.search(line)]
    return next(iter(errors or lines), f"exit code {code} without a word")
