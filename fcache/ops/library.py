"""Which path computes the ops on a device: a compiled library, or the reference, and why.

Decided once per device and process, at the first call. A library is looked for in
``$FCACHE_KERNEL_CACHE`` and beside the sources, where ``fcache build`` puts it, then in the cache
of libraries built at first use; where there is none, it is built. ``FCACHE_KERNELS`` decides:
``auto`` (the default), ``off`` (the reference), ``require`` (an error instead of the reference).
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from fcache.errors import ConfigError, KernelError, nearest
from fcache.ops import reference
from fcache.ops.build import (
    TARGETS,
    Target,
    build,
    build_key,
    cache_folder,
    default_archs,
    find_compiler,
    source_folder,
    source_key,
)
from fcache.ops.stamp import Stamp, read_stamp

MODES = ("auto", "off", "require")
OPS = (
    "ms_deform_attn",
    "ms_deform_attn_sampled",
    "ms_deform_attn_backward",
    "ms_deform_attn_sampled_backward",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelUse:
    """What computes the ops on one kind of device, and why.

    Args:
        path: ``"compiled"``, or ``"reference"`` for plain PyTorch.
        why: The reason in words.
        library: The file that was loaded; None where it was not kept, and for the reference.
    """

    device: str
    path: Literal["compiled", "reference"]
    why: str
    library: Path | None = None

    def __str__(self) -> str:
        name = "compiled kernels" if self.path == "compiled" else "PyTorch reference"
        return f"{self.device}: {name}, {self.why}"


_lock = threading.RLock()  # the trial of a library calls its ops
_decided: dict[str, KernelUse] = {}
_overrides = torch.library.Library("fcache", "IMPL")


def load(device: str) -> bool:
    """Returns whether a compiled library computes the ops on a kind of device, after loading it.

    Raises:
        KernelError: None does, and ``FCACHE_KERNELS=require``.
    """
    use = kernel_use(device)
    if use.path == "reference" and _mode() == "require":
        raise KernelError(
            f"FCACHE_KERNELS=require, and there are no compiled kernels for {device}: {use.why}",
            run=f"fcache build{' --cuda' if device == 'cuda' else ''}",
        )
    return use.path == "compiled"


def kernel_use(device: str) -> KernelUse:
    """Returns what computes the ops on a kind of device; the first call decides it, and builds."""
    if device not in _decided:
        with _lock:
            if device not in _decided:
                _decided[device] = _decide(device)
    return _decided[device]


def kernels_in_use() -> dict[str, KernelUse]:
    """Returns what computes the ops on each kind of device here; builds what is to be built."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {device: kernel_use(device) for device in devices}


def load_file(path: Path, device: str) -> str | None:
    """Loads a library and tries it; returns what is wrong with it, or None.

    Whatever is wrong, the reference computes the ops afterwards.
    """
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"it does not load: {error}"
    key = device.upper()
    missing = [
        name
        for name in OPS
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fcache::{name}", key)
    ]
    if missing:
        return f"it brings no {missing[0]} for {device}"
    try:
        _try(device)
    except (RuntimeError, NotImplementedError) as error:
        for name in OPS:
            _overrides.impl(name, getattr(reference, name), key, allow_override=True)
        return f"it fails on a tiny input: {str(error).splitlines()[0]}"
    return None


def _try(device: str) -> None:
    """A driver that is too old for a library tells so only when a kernel starts."""
    value = torch.full((1, 1, 1, 8), 3.0, device=device)
    points = torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device)
    weights = torch.full((1, 1, 1, 1, 1), 0.5, device=device)
    with torch.no_grad():
        out = torch.ops.fcache.ms_deform_attn_sampled(value, [1, 1], points, weights)
    if out.flatten().tolist() != [1.5] * 8:
        raise RuntimeError(f"half of 3 is not {out.flatten().tolist()}")


def _mode() -> str:
    mode = os.environ.get("FCACHE_KERNELS", "auto")
    if mode not in MODES:
        raise ConfigError(
            f"FCACHE_KERNELS={mode} is none of: {', '.join(MODES)}{nearest(mode, MODES)}."
        )
    return mode


def _decide(device: str) -> KernelUse:
    if device not in TARGETS:
        return KernelUse(device, "reference", f"there are no kernels for '{device}'")
    mode = _mode()
    if mode == "off":
        return KernelUse(device, "reference", "FCACHE_KERNELS=off")
    target = TARGETS[device]
    try:
        for path, stamp in _fitting(target):
            if wrong := load_file(path, device):
                log.warning("'%s' is passed over: %s.", path, wrong)
            else:
                return KernelUse(device, "compiled", f"'{path}' ({stamp.compiler})", path)
        return _build_and_load(target)
    except KernelError as error:
        if mode == "auto":
            log.warning(
                "No compiled kernels for %s: %s. Deformable attention runs in plain PyTorch, "
                "many times slower.",
                device,
                error,
            )
        return KernelUse(device, "reference", str(error))


def _fitting(target: Target) -> Iterator[tuple[Path, Stamp]]:
    """Yields the libraries at hand that were built from these sources for these devices."""
    key = source_key(target)
    needed = default_archs() if target.device == "cuda" else ()
    for path in _places(target):
        try:
            stamp = read_stamp(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            log.warning("'%s' cannot be read: %s.", path, error.strerror)
            continue
        if stamp is None:
            log.warning("'%s' is damaged or not of fcache; it is passed over.", path)
        elif stamp.source_key != key:
            log.info("'%s' was built from other sources; it is passed over.", path)
        elif all(_covers(stamp.archs, int(arch)) for arch in needed):
            yield path, stamp


def _places(target: Target) -> Iterator[Path]:
    if chosen := os.environ.get("FCACHE_KERNEL_CACHE"):
        yield Path(chosen).absolute() / target.file
    yield source_folder() / target.file
    try:
        cache = cache_folder()
    except OSError:
        return
    try:
        yield _folder_of(target, cache) / target.file
    except KernelError:
        # Without a compiler, what another machine built from these sources will do.
        yield from sorted(cache.glob(f"*/{target.file}"))


def _folder_of(target: Target, cache: Path) -> Path:
    archs = default_archs() if target.device == "cuda" else ()
    return cache / build_key(target, find_compiler(target.device), archs)


def _covers(archs: tuple[str, ...], needed: int) -> bool:
    """Code of an architecture runs on later ones of its generation; the last is translated."""
    numbers = [int(arch) for arch in archs]
    same = any(n // 10 == needed // 10 and n <= needed for n in numbers)
    return same or max(numbers) <= needed


def _build_and_load(target: Target) -> KernelUse:
    log.info("Building the kernels for %s.", target.device)
    try:
        path = build(target.device, _folder_of(target, cache_folder()))
    except OSError as error:
        log.warning(
            "The kernel cache cannot be written (%s); the kernels are built for this process only.",
            error,
        )
    else:
        return _checked(target, path, f"'{path}' ({find_compiler(target.device).version})")
    try:
        with tempfile.TemporaryDirectory(prefix="fcache-kernels-") as temporary:
            path = build(target.device, Path(temporary))
            use = _checked(target, path, "built for this process only")
    except OSError as error:
        raise KernelError(f"nothing can be written: {error}") from None
    return replace(use, library=None)


def _checked(target: Target, path: Path, why: str) -> KernelUse:
    if wrong := load_file(path, target.device):
        raise KernelError(f"'{path}' was built, but {wrong}")
    return KernelUse(target.device, "compiled", why, path)
