"""Clocks for ways to compute deformable attention: seconds of a CPU's threads, and a GPU's own."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.bench.deform_attn_rivals import Rival
from tests.bench.timing import alternate

Row = dict[str, Any]


def keep_mapped(mapped: bool) -> None:
    """Sets whether freed memory stays mapped.

    Otherwise glibc returns large blocks, and the kernel zeroes their pages again at every call.
    """
    libc = ctypes.CDLL(None)
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4
    libc.mallopt(mmap_max, 0 if mapped else 65536)
    libc.mallopt(mmap_threshold, 128 << 10)
    libc.mallopt(trim_threshold, 2**31 - 1 if mapped else 128 << 10)
    libc.mallopt(top_pad, 64 << 20 if mapped else 0)
    libc.malloc_trim(0)


def cpu_rows(rivals: dict[str, Rival], inputs: list[Tensor], rounds: int) -> dict[str, Row]:
    """Times rivals, one of them named ``fused``, on CPU tensors.

    Medians are of calls that alternate with the others', which leave nothing of the inputs in the
    caches; the least is of calls in a row.
    """
    grad = torch.randn_like(rivals["fused"].forward(inputs))
    cases: dict[str, Callable[[int], object]] = {}
    for name, rival in rivals.items():
        cases[f"{name} forward"] = lambda _, rival=rival: rival.forward(inputs)
        cases[f"{name} both"] = lambda _, rival=rival: rival.both(inputs, grad)
    rows: dict[str, Row] = {name: {} for name in rivals}
    for mapped in (True, False):
        keep_mapped(mapped)
        times = alternate(cases, rounds)
        for name in rivals:
            suffix = "" if mapped else "_fresh"
            rows[name][f"forward_ms{suffix}"] = times[f"{name} forward"].cpu_ms
            rows[name][f"both_ms{suffix}"] = times[f"{name} both"].cpu_ms
    keep_mapped(True)
    for name in rivals:
        for way in ("forward", "both"):
            calls = 4 * rounds if name == "fused" else rounds
            in_a_row = alternate({way: cases[f"{name} {way}"]}, calls)[way]
            rows[name][f"{way}_least_ms"] = in_a_row.least_cpu_ms
    fused_cases = {name: case for name, case in cases.items() if name.startswith("fused ")}
    keep_mapped(True)
    one = alternate(fused_cases, rounds)
    torch.set_num_threads(2)
    two = alternate(fused_cases, rounds)
    torch.set_num_threads(1)
    for way in ("forward", "both"):
        rows["fused"][f"{way}_ms_two_threads"] = two[f"fused {way}"].wall_ms
        gain = one[f"fused {way}"].wall_ms / two[f"fused {way}"].wall_ms
        rows["fused"][f"{way}_two_threads_gain"] = gain
    return rows


def gpu_ms(run: Callable[[], object], rounds: int, cold: bool) -> float:
    """Median milliseconds of the device, with an empty or a warm L2.

    It sleeps first, so that launches queue up and the host's own time does not count.
    """
    room = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    taken = []
    for number in range(rounds + 2):
        if cold:
            room.fill_(number % 2)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(20_000_000)
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        if number >= 2:
            taken.append(first.elapsed_time(last))
    return statistics.median(taken)


def gpu_rows(rivals: dict[str, Rival], inputs: list[Tensor], rounds: int) -> dict[str, Row]:
    """Times rivals, one of them named ``fused``, on CUDA tensors."""
    grad = torch.randn_like(rivals["fused"].forward(inputs))
    rows: dict[str, Row] = {}
    for name, rival in rivals.items():
        forward, both = partial(rival.forward, inputs), partial(rival.both, inputs, grad)
        row = {}
        for suffix, cold in (("", True), ("_warm", False)):
            row[f"forward_ms{suffix}"] = gpu_ms(forward, rounds, cold)
            row[f"both_ms{suffix}"] = gpu_ms(both, rounds, cold)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        torch.cuda.synchronize()
        row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        rows[name] = row
    return rows


def gpu_speeds() -> tuple[float, float, int]:
    """Measured copy GB/s (read and written), the clock in GHz under load, and processors."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    memory = 2 * source.numel() / gpu_ms(lambda: target.copy_(source), 10, cold=False) / 1e6
    cycles = 200_000_000
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1000)
    first.record()
    torch.cuda._sleep(cycles)
    last.record()
    torch.cuda.synchronize()
    clock = cycles / first.elapsed_time(last) / 1e6
    return memory, clock, torch.cuda.get_device_properties(0).multi_processor_count
