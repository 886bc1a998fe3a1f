"""``fcache doctor``."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

import fcache
from fcache.cli.output import emit_json, emit_lines, human_bytes

LIBRARIES = ("torch", "timm", "zarr", "numpy", "av", "xformers")


def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="A folder that is, or is to be, written to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what this machine offers: versions, devices, which kernels run and why, free disk."""
    from dataclasses import asdict

    from fcache.ops import kernels_in_use
    from fcache.sources.versions import decoder_versions

    versions = _versions()
    devices = _devices()
    kernels = kernels_in_use()
    decoder = decoder_versions(["video"])
    disk = None if path is None else _disk(path)
    if as_json:
        content: dict[str, Any] = {
            "versions": versions,
            "devices": devices,
            "kernels": {device: asdict(use) for device, use in kernels.items()},
            "decoder": decoder,
        }
        emit_json("doctor", content if disk is None else {**content, "disk": disk})
        return
    lines = [
        *versions.items(),
        *((device["name"], device["words"]) for device in devices),
        *((f"kernels {device}", f"{use.path}: {use.why}") for device, use in kernels.items()),
        ("decoder", ", ".join(f"{name} {version}" for name, version in decoder.items())),
    ]
    if disk is not None:
        lines.append(("disk", f"{human_bytes(disk['free_bytes'])} free at '{disk['folder']}'"))
    emit_lines(lines)


def _versions() -> dict[str, str]:
    found = {"fcache": fcache.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _devices() -> list[dict[str, str]]:
    import torch

    cores = len(os.sched_getaffinity(0))
    capability = torch.backends.cpu.get_cpu_capability()
    devices = [{"name": "cpu", "words": f"{cores} cores, {platform.machine()} {capability}"}]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        words = f"{facts.name}, {human_bytes(facts.total_memory)}, {facts.major}.{facts.minor}"
        devices.append({"name": f"cuda:{index}", "words": words})
    return devices


def _disk(path: Path) -> dict[str, Any]:
    import shutil

    from fcache.extract.disk import nearest_folder

    folder = nearest_folder(path)
    usage = shutil.disk_usage(folder)
    return {"folder": str(folder), "free_bytes": usage.free, "total_bytes": usage.total}
