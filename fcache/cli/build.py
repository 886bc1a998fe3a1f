"""``fcache build``."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fcache.cli.output import emit_json, emit_lines
from fcache.errors import ConfigError, KernelError


def build(
    cuda: Annotated[
        bool | None,
        typer.Option("--cuda/--no-cuda", help="Also for GPUs; by default where there is one."),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option("--arch", help="CUDA architectures: 80,90. By default those of the GPUs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to build into; by default where fcache is installed."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile the kernels ahead of time, for images and clusters; else the first use does."""
    import torch

    from fcache.ops import build as ops

    archs = _archs(arch, cuda)
    folder = ops.source_folder() if out is None else out.absolute()
    if out is None and not os.access(folder, os.W_OK):
        raise ConfigError(
            f"'{folder}', where fcache is installed, cannot be written; expected --out.",
            run=f"fcache build --out {ops.cache_folder()}",
        )
    with_cuda = torch.cuda.is_available() if cuda is None else cuda
    devices = ["cpu", *["cuda"] * (with_cuda or archs is not None)]
    if plan:
        commands = [ops.planned(device, folder, archs) for device in devices]
        if as_json:
            emit_json("build.plan", {"commands": commands})
            return
        for command in commands:
            print(shlex.join(command))
        return
    built = [_build(device, folder, archs) for device in devices]
    if as_json:
        emit_json("build", {"libraries": built})
        return
    emit_lines(
        [(row["device"], f"{row['path']}  {row['seconds']:.1f} s, {row['tried']}") for row in built]
    )
    if out is not None:
        print(f"Found first where FCACHE_KERNEL_CACHE={shlex.quote(str(folder))} is set.")


def _build(device: str, folder: Path, archs: list[str] | None) -> dict[str, Any]:
    import torch

    from fcache.ops import build as ops, library

    start_s = time.monotonic()
    path = ops.build(device, folder, archs)
    seconds = time.monotonic() - start_s
    if device == "cuda" and not torch.cuda.is_available():
        tried = "not tried: there is no GPU here"
    elif wrong := library.load_file(path, device):
        raise KernelError(f"'{path}' was built, but {wrong}.")
    else:
        tried = "loads and runs"
    return {"device": device, "path": str(path), "seconds": round(seconds, 2), "tried": tried}


def _archs(words: str | None, cuda: bool | None) -> list[str] | None:
    if words is None:
        return None
    if cuda is False:
        raise ConfigError(f"--arch {words} is for CUDA; expected it without --no-cuda.")
    archs = [word.strip().replace(".", "") for word in words.split(",")]
    for arch in archs:
        if not arch.isdigit():
            raise ConfigError(
                f"--arch {words} has '{arch}'; expected numbers such as 80,90.",
                run="fcache build --arch 80,90",
            )
    return archs
