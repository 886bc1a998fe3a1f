"""``fcache extract`` and ``fcache why``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcache.cli.describe import difference_words
from fcache.cli.extract_events import show_event
from fcache.cli.extract_plan import show_plan
from fcache.cli.output import Progress, beside, emit_json, human_bytes, human_seconds
from fcache.errors import QUARANTINED_EXIT_CODE, CacheError, ConfigError, FcacheError

if TYPE_CHECKING:
    from fcache.extract.job import JobSummary
    from fcache.extract.plan import ExtractPlan
    from fcache.extract.request import ExtractRequest


def extract(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... [KEY=VALUE]...",
            help="Videos, folders, globs, frame folders, or a manifest (.toml or .json); then "
            "settings, for example model=vit_small_patch14_dinov2 short_side=480 fps=5.",
        ),
    ],
    cache: Annotated[Path, typer.Option("--cache", help="Folder of the cache.")],
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done; write nothing.")
    ] = False,
    first: Annotated[
        int | None,
        typer.Option("--first", min=1, help="Only N videos: measure, and draw a PCA picture."),
    ] = None,
    scheduler: Annotated[
        str,
        typer.Option("--scheduler", help="local, inline, tcp://HOST:PORT, or slurm:FILE."),
    ] = "local",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try quarantined videos again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compute a frozen backbone's stage outputs for every frame, once, into a cache.

    Resumes: run the same command again after anything that happened.
    """
    from fcache.extract.cluster import check_scheduler
    from fcache.extract.job import run_job
    from fcache.extract.request import plan_request, read_request

    check_scheduler(scheduler)
    request = read_request(words)
    if request.config.dtype == "int8":
        request = _calibrated(request, cache, scheduler, only_look=plan)
    with Progress("read", len(request.sources), "sources") as reading:
        planned, manifest = plan_request(
            request,
            cache,
            retry_failed=retry_failed,
            trust_manifest=plan,
            first=first,
            progress=lambda done, total: reading.advance(1),
        )
        for path, reason in request.notes:
            reading.note(
                {"event": "passed over", "path": path, "reason": reason}, f"'{path}' {reason}"
            )
    if plan:
        show_plan(planned, request.config, scheduler, as_json=as_json)
        return
    with Progress("extract", planned.todo_frames, cost=planned.todo_cost) as progress:
        if request.config.weights.startswith("random:"):
            progress.note(
                {"event": "warning", "weights": request.config.weights},
                f"weights={request.config.weights}: these features are of an UNTRAINED network",
            )
        summary = run_job(
            planned,
            manifest,
            request.config,
            scheduler=scheduler,
            report=lambda event: show_event(progress, event, planned),
        )
    picture = _draw_first(planned) if first is not None else None
    _show_summary(planned, summary, picture, as_json=as_json)
    if summary.failed:
        raise typer.Exit(FcacheError.exit_code)
    if summary.quarantined:
        raise typer.Exit(QUARANTINED_EXIT_CODE)


def why(
    cache: Annotated[str, typer.Argument(metavar="CACHE[@KEY]")],
    words: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say whether a changed setting would hit the cache, and which fields differ if not."""
    from fcache.cache import open_cache
    from fcache.extract.request import changed_identity
    from fcache.store.identity import differences, view_key

    views = open_cache(cache).views
    found: list[dict[str, Any]] = []
    for view in views:
        try:
            wanted = changed_identity(view.index, words)
        except ConfigError as error:
            if len(views) == 1:
                raise
            # The setting fits another view's kind of backbone.
            found.append({"view": view.key, "hit": None, "impossible": error.message})
            continue
        hit = next((other.key for other in views if other.key == view_key(wanted)), None)
        fields = differences(view.identity, wanted)
        found.append(
            {
                "view": view.key,
                "hit": hit,
                "wanted": view_key(wanted),
                "differences": [difference_words(field) for field in fields],
            }
        )
    if as_json:
        emit_json("why", {"views": found})
    for one in found if not as_json else []:
        if "impossible" in one:
            print(f"MISS  from {one['view']}: {one['impossible']}")
        elif one["hit"]:
            print(f"HIT   {one['hit']} holds it (asked from {one['view']})")
        else:
            print(f"MISS  {one['wanted']} is not there; from {one['view']} it differs in:")
            print("".join(f"        {field}\n" for field in one["differences"]), end="")
    if not any(one["hit"] for one in found):
        raise typer.Exit(CacheError.exit_code)


def _calibrated(
    request: ExtractRequest, cache: Path, scheduler: str, *, only_look: bool
) -> ExtractRequest:
    """Gives a request of int8 its channel scales: the cache's, or else by looking at frames."""
    from fcache.extract.calibration_job import calibrate
    from fcache.extract.identity import inherited

    calibration = inherited(cache, request.identity)
    if calibration is None and only_look:
        return request
    if calibration is None:
        with Progress("calibrate", request.config.calibration_frames) as progress:
            calibration, request = calibrate(
                request,
                cache,
                scheduler=scheduler,
                report=lambda event: show_event(progress, event),
                progress=lambda done, total: progress.move("frames", done, total),
            )
    return request.calibrated(calibration)


def _show_summary(
    plan: ExtractPlan, summary: JobSummary, picture: Path | None, *, as_json: bool
) -> None:
    if as_json:
        emit_json(
            "extract",
            {
                "key": plan.key,
                "videos": summary.num_videos,
                "frames": summary.num_frames,
                "bytes": summary.size_bytes,
                "seconds": round(summary.seconds, 2),
                "frames_per_s": round(summary.rate, 3),
                "quarantined": summary.quarantined,
                "failed": summary.failed,
                "picture": picture,
            },
        )
        return
    if summary.num_frames:
        print(
            f"extracted {summary.num_frames:,} frames, {human_bytes(summary.size_bytes)} in "
            f"{human_seconds(summary.seconds)} ({summary.rate:.3g} frames/s) into view {plan.key}"
        )
    elif summary.num_videos and not any(True for _ in plan.todo()):
        print(f"nothing to do: {_videos(summary.num_videos)} complete in view {plan.key}")
    elif plan.borrowed_frames:
        print(f"reused {plan.borrowed_frames:,} frames that view {plan.key} holds")
    elif not (summary.quarantined or summary.failed):
        told = f"{_videos(summary.num_videos)} complete in view {plan.key}"
        print(f"{told}: another job has extracted the rest")
    else:
        print(f"no frame was extracted into view {plan.key}")
    if picture is not None:
        print(f"picture {picture}")
    for what, videos in (("quarantined", summary.quarantined), ("failed", summary.failed)):
        if videos:
            print(f"{len(videos)} {what}:")
        for video, reason in videos.items():
            print(f"  {video}: {reason}")


def _videos(number: int) -> str:
    return f"{number:,} video is" if number == 1 else f"{number:,} videos are"


def _draw_first(plan: ExtractPlan) -> Path | None:
    """Draws the first planned video that is complete, beside the cache."""
    from fcache.store.cache import StoreCache
    from fcache.viz.cached import draw_video

    view = StoreCache(plan.cache, plan.key).view()
    for planned in plan.sources:
        if view.state.is_complete(view.state.items[planned.request.item], view.index.feature_array):
            path = beside(plan.cache, ".first.png")
            video = view.frames(planned.source.video_id, item=planned.request.item)
            draw_video(view, video, path)
            return path
    return None
