"""``fcache extract --plan``: what would be done, what it takes, and what would hold it up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fcache.cli.output import emit_json, emit_lines, human_bytes, human_seconds

if TYPE_CHECKING:
    from fcache.config import ExtractConfig
    from fcache.extract.disk import DiskSpeed
    from fcache.extract.pace import Bottleneck
    from fcache.extract.plan import ExtractPlan

PARTS = {
    "decode": "decoding",
    "compute": "the network",
    "write": "writing",
    "disk": "the disk",
}


@dataclass(frozen=True, slots=True)
class _Speeds:
    """What workers make and the disk takes, frames per second; None where not measured.

    Attributes:
        num_workers: None where only the scheduler knows.
    """

    num_workers: int | None
    worker: float | None
    taken: float | None
    disk: DiskSpeed
    bottleneck: Bottleneck | None


def show_plan(plan: ExtractPlan, config: ExtractConfig, scheduler: str, *, as_json: bool) -> None:
    """Prints a plan; measures the disk for it."""
    speeds = _speeds(plan, config, scheduler)
    at = _figures(plan, speeds)
    if as_json:
        emit_json("extract.plan", at)
        return
    layout = plan.layout
    sizes = sorted({layout.frame_bytes(source.request.bucket) for source in plan.sources})
    ends = dict.fromkeys(human_bytes(size) for size in sizes[:1] + sizes[-1:])
    to_write = f"{human_bytes(plan.todo_bytes)} to write as {config.dtype}"
    untrained = "  UNTRAINED" if config.weights.startswith("random:") else ""
    resume = (
        f"{at['videos_done']:,} videos done, {at['videos_to_do']:,} to do "
        f"({at['frames_to_do']:,} frames), {len(plan.rejected):,} quarantined"
    )
    rows = [
        ("view", f"{plan.key}  {config.model}  weights={config.weights}{untrained}"),
        ("source", f"{at['videos']:,} videos  {at['frames']:,} frames"),
        ("canvas", "  ".join(at["buckets"][:6]) + ("  ..." if len(at["buckets"]) > 6 else "")),
        ("size", f"{to_write}  ({' to '.join(ends) or '-'} a frame)"),
        ("disk", _disk_text(plan, speeds)),
        ("time", _time_text(plan)),
        ("bottleneck", _bottleneck_text(speeds)),
        ("resume", resume),
    ]
    emit_lines([row for row in rows if plan.todo_frames or row[0] != "bottleneck"])
    for video, reason in at["quarantined"].items():
        print(f"  quarantined {video}: {reason}")
    print(f"nothing was written to '{plan.cache}'. Remove --plan to start.")


def _speeds(plan: ExtractPlan, config: ExtractConfig, scheduler: str) -> _Speeds:
    from fcache.extract.cluster import planned_workers
    from fcache.extract.disk import DiskSpeed, measure_disk
    from fcache.extract.pace import find_bottleneck

    num_workers = planned_workers(scheduler, workers=config.workers, device=config.device)
    if not plan.todo_frames:
        return _Speeds(num_workers, None, None, DiskSpeed(None, "there is nothing to write"), None)
    disk = measure_disk(plan.cache)
    taken = None
    if disk.bytes_per_s is not None:
        taken = disk.bytes_per_s * plan.todo_frames / plan.todo_bytes
    bottleneck = None
    if plan.pace is not None and plan.rate and taken:
        bottleneck = find_bottleneck(plan.pace.most, plan.rate * (num_workers or 1), taken)
    return _Speeds(num_workers, plan.rate, taken, disk, bottleneck)


def _figures(plan: ExtractPlan, speeds: _Speeds) -> dict[str, Any]:
    states = [source.state for source in plan.sources]
    written = speeds.disk.bytes_per_s
    return {
        "key": plan.key,
        "videos": len(plan.sources),
        "frames": plan.num_frames,
        "videos_done": states.count("done"),
        "videos_to_do": len(states) - states.count("done"),
        "frames_to_do": plan.todo_frames,
        "bytes_to_do": plan.todo_bytes,
        "bytes_cached": plan.cached_bytes,
        "bytes_free": plan.free_bytes,
        "workers": speeds.num_workers,
        "frames_per_s_per_worker": round(speeds.worker, 3) if speeds.worker else None,
        "disk_bytes_per_s": None if written is None else round(written),
        "disk_frames_per_s": round(speeds.taken, 3) if speeds.taken else None,
        "disk_unmeasured": speeds.disk.reason or None,
        "bottleneck": speeds.bottleneck and asdict(speeds.bottleneck),
        "buckets": sorted({source.request.bucket.name for source in plan.sources}),
        "quarantined": {rejected.source.video_id: rejected.reason for rejected in plan.rejected},
    }


def _disk_text(plan: ExtractPlan, speeds: _Speeds) -> str:
    fits = "ok" if plan.todo_bytes <= plan.free_bytes else "NOT ENOUGH"
    free = f"{human_bytes(plan.free_bytes)} free  {fits}"
    if not plan.todo_frames:
        return free
    if speeds.disk.bytes_per_s is None or speeds.taken is None:
        return f"{free}  writes not measured: {speeds.disk.reason}"
    speed = f"{human_bytes(speeds.disk.bytes_per_s)}/s = {_rate(speeds.taken)}"
    return f"{free}  writes {speed}"


def _rate(frames_per_s: float) -> str:
    whole = frames_per_s >= 100
    return f"{frames_per_s:,.0f} frames/s" if whole else f"{frames_per_s:.3g} frames/s"


def _time_text(plan: ExtractPlan) -> str:
    if plan.rate is None:
        return "not measured; --first 1 measures it"
    seconds = human_seconds(plan.todo_frames / plan.rate)
    return f"{seconds} on one worker at {_rate(plan.rate)} (measured at the last commits)"


def _bottleneck_text(speeds: _Speeds) -> str:
    taken = None if speeds.taken is None else _rate(speeds.taken)
    if speeds.worker is None:
        limit = f"; the disk takes {taken}" if taken else ""
        return f"not measured{limit}; --first 1 measures what a worker makes"
    per = f"{_rate(speeds.worker)} a worker"
    if speeds.num_workers is not None:
        count = f"{speeds.num_workers} worker" + "s" * (speeds.num_workers != 1)
        per = f"{_rate(speeds.worker * speeds.num_workers)} on {count}"
    found = speeds.bottleneck
    if found is None:
        return f"workers make {per}; what the disk takes is not measured"
    margin = f"{found.margin:.3g} times as many"
    if found.slowest == "disk":
        return f"the disk: it takes {taken}; workers make {per}, {margin}"
    return f"{PARTS[found.slowest]}: {per}; the disk takes {taken}, {margin}"
