"""``fcache copy``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcache.cli.describe import error_table
from fcache.cli.output import (
    Progress,
    emit_json,
    emit_lines,
    emit_table,
    human_bytes,
    human_seconds,
)
from fcache.errors import QUARANTINED_EXIT_CODE

if TYPE_CHECKING:
    from fcache.extract.copy import CopySummary
    from fcache.extract.copy_plan import CopyPlan


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC[@KEY]", help="The view to copy.")],
    target: Annotated[
        Path,
        typer.Argument(metavar="DST", help="Folder of the cache to copy into; it may be the same."),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="dtype=TYPE [KEY=VALUE]...",
            help="dtype=int8, float16, bfloat16 or float32; device=auto, cpu or cuda.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Copy a view into another stored type, and say what that costs.

    Pixels, names, splits and crops are kept; videos that are not complete are left out. Resumes:
    run the same command again after anything that happened.
    """
    from fcache.cache import open_cache
    from fcache.extract.copy import run_copy
    from fcache.extract.copy_plan import choose_source, plan_copy, read_settings

    settings = read_settings(words or [])
    view = choose_source(open_cache(source), settings.dtype)
    planned = plan_copy(view, target, settings.dtype)
    if plan:
        _show_plan(planned, as_json=as_json)
        return
    with Progress("copy", planned.sizes.todo_frames) as progress:
        summary = run_copy(
            planned, device=settings.device, report=lambda event: _show_event(progress, event)
        )
    _show_summary(planned, summary, as_json=as_json)
    if any(planned.left_out.values()):
        raise typer.Exit(QUARANTINED_EXIT_CODE)


def _show_event(progress: Progress, event: Mapping[str, Any]) -> None:
    kind = event["event"]
    if kind == "calibrated":
        progress.move("frames looked at", event["frames"], event["of"])
    elif kind == "start":
        progress.move("frames", 0, event["frames"])
        progress.start()
    elif kind == "commit":
        progress.advance(event["frames"], event["bytes"])
    elif kind == "stopping":
        progress.note(event, "stopping after the shard at hand; Ctrl-C again stops at once")
    elif kind == "waiting":
        progress.note(event, f"waiting for {event['shards']} shards that another copy is writing")


def _figures(plan: CopyPlan) -> dict[str, Any]:
    sizes = plan.sizes
    return {
        "view": plan.source.key,
        "key": plan.key,
        "dtype": plan.dtype,
        "videos": len(plan.rows.videos),
        "frames": sizes.num_frames,
        "bytes_before": sizes.before_bytes,
        "bytes_after": sizes.after_bytes,
        "left_out": dict(plan.left_out),
    }


def _show_plan(plan: CopyPlan, *, as_json: bool) -> None:
    sizes = plan.sizes
    if as_json:
        more = {
            "frames_to_do": sizes.todo_frames,
            "bytes_to_do": sizes.todo_bytes,
            "bytes_free": plan.free_bytes,
        }
        emit_json("copy.plan", {**_figures(plan), **more})
        return
    model = plan.source.identity["backbone"]["model"]
    fits = "ok" if sizes.todo_bytes <= plan.free_bytes else "NOT ENOUGH"
    done = sizes.num_frames - sizes.todo_frames
    emit_lines(
        [
            ("view", f"{plan.source.key}  {model}  {plan.source.index.layout.dtype}"),
            ("copy", f"{plan.key or 'key known after calibration'}  {plan.dtype}"),
            ("source", f"{len(plan.rows.videos):,} videos  {sizes.num_frames:,} frames"),
            ("size", _size(plan)),
            ("disk", f"{human_bytes(plan.free_bytes)} free  {fits}"),
            ("resume", f"{done:,} frames done, {sizes.todo_frames:,} to do"),
            *_left_out(plan),
        ]
    )
    print(f"nothing was written to '{plan.cache}'. Remove --plan to start.")


def _show_summary(plan: CopyPlan, summary: CopySummary, *, as_json: bool) -> None:
    if as_json:
        emit_json(
            "copy",
            {
                **_figures(plan),
                "key": summary.key,
                "frames_copied": summary.num_frames,
                "seconds": round(summary.seconds, 2),
                "errors": summary.errors,
            },
        )
        return
    if summary.num_frames:
        rate = summary.num_frames / summary.seconds
        print(
            f"copied {summary.num_frames:,} frames, {human_bytes(summary.size_bytes)} in "
            f"{human_seconds(summary.seconds)} ({rate:.3g} frames/s) into view {summary.key}"
        )
    else:
        print(f"nothing to do: {plan.sizes.num_frames:,} frames are copied in view {summary.key}")
    emit_table(*error_table(summary.errors))
    emit_lines([("size", _size(plan)), *_left_out(plan)])


def _size(plan: CopyPlan) -> str:
    sizes = plan.sizes
    before = f"{human_bytes(sizes.before_bytes)} as {plan.source.index.layout.dtype}"
    after = f"{human_bytes(sizes.after_bytes)} as {plan.dtype}"
    return f"{before} -> {after} ({sizes.after_bytes / sizes.before_bytes:.0%})"


def _left_out(plan: CopyPlan) -> list[tuple[str, str]]:
    states = {"partial": "unfinished", "quarantined": "in quarantine"}
    counts = [f"{count:,} {states[state]}" for state, count in plan.left_out.items() if count]
    return [("left out", f"videos: {', '.join(counts)}")] if counts else []
