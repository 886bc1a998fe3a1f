"""``fcache ls`` and ``fcache info``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from fcache.cli.describe import Lines, error_table, identity_lines, time_words
from fcache.cli.output import emit_json, emit_lines, emit_table, human_bytes
from fcache.errors import CacheNotFoundError, ConfigError, nearest

if TYPE_CHECKING:
    from fcache.store.cache import View
    from fcache.store.inspect import VideoRow, ViewRow

CachePath = Annotated[str, typer.Argument(metavar="CACHE[@KEY]", help="Folder of the cache.")]
MAX_CANVASES = 3  # that ``ls`` names; ``info`` names all
MAX_TOLD = 50_000  # row groups whose values and times `info` looks at: 800,000 frames
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def ls(
    cache: CachePath,
    videos: Annotated[bool, typer.Option("--videos", help="List videos, not views.")] = False,
    status: Annotated[
        str | None,
        typer.Option("--status", help="Only videos that are complete, partial or quarantined."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the views of a cache, or the videos of its views."""
    from fcache.cache import open_cache
    from fcache.store.inspect import VideoState, list_videos, summarise

    opened = open_cache(cache)
    if status is not None and status not in get_args(VideoState):
        raise ConfigError(
            f"--status {status} is none of: {', '.join(get_args(VideoState))}"
            f"{nearest(status, get_args(VideoState))}."
        )
    if not videos and status is None:
        views = [summarise(view) for view in opened.views]
        if as_json:
            emit_json("ls", {"views": [{**asdict(row), "state": row.state} for row in views]})
            return
        _print_views(views)
        return
    rows = [
        (view.key, row)
        for view in opened.views
        for row in list_videos(view)
        if status in (None, row.state)
    ]
    if as_json:
        emit_json("ls.videos", {"videos": [{"view": key, **asdict(row)} for key, row in rows]})
        return
    _print_videos(rows)


def _print_views(views: list[ViewRow]) -> None:
    with_crops = any(row.num_crops for row in views)
    head = ["KEY", "MODEL", "DTYPE", "CANVASES", "VIDEOS", *["CROPS"] * with_crops]
    emit_table(
        [*head, "FRAMES", "SIZE", "STATE"],
        [
            [
                row.key,
                row.model,
                row.dtype + (f" of {row.derived_from[:8]}" if row.derived_from else ""),
                _canvases(row),
                f"{row.complete}/{row.complete + row.partial + row.quarantined}",
                *[str(row.num_crops) if row.num_crops else "-"] * with_crops,
                f"{row.num_frames:,}",
                human_bytes(row.size_bytes),
                row.state,
            ]
            for row in views
        ],
    )


def _canvases(row: ViewRow) -> str:
    few = len(row.canvases) <= MAX_CANVASES
    return " ".join(row.canvases) if few else f"{len(row.canvases)} sizes"


def _print_videos(rows: list[tuple[str, VideoRow]]) -> None:
    with_crops = any(row.draw is not None for _, row in rows)
    head = ["VIEW", "VIDEO", *["CROP"] * with_crops, "STATE", "SPLIT", "CANVAS", "FRAMES"]
    emit_table(
        [*head, "SECONDS", "REASON"],
        [
            [
                key[:8],
                row.video_id,
                *["-" if row.draw is None else str(row.draw)] * with_crops,
                row.state,
                row.split or "",
                row.canvas,
                str(row.num_frames),
                f"{row.seconds:.2f}" if row.seconds is not None else "",
                row.reason,
            ]
            for key, row in rows
        ],
    )


def info(
    cache: CachePath,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Print the manifest it was built from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a view is: its identity in words, its sizes, who made it."""
    from fcache.cache import open_cache

    view = open_cache(cache).view()
    if manifest:
        _print_manifest(view, as_json=as_json)
        return
    from fcache.extract.told import spent_seconds, stored_errors
    from fcache.store.inspect import origins, sampled_stats, summarise

    row, (stats, share) = summarise(view), sampled_stats(view, MAX_TOLD)
    errors, seconds = stored_errors(view, stats), spent_seconds(stats, share)
    made = {**view.index.attributes["provenance"], "made_by": origins(view)}
    if as_json:
        scales = view.index.attributes.get("calibration")
        content = {
            "identity": view.identity,
            **asdict(row),
            "errors": errors,
            "seconds": seconds,
            "provenance": made,
        }
        if scales is not None:
            content["calibration"] = {name: scales[name] for name in ("num_frames", "sha256")}
        emit_json("info", content)
        return
    time = time_words(seconds)
    emit_lines(
        [
            *identity_lines(view, row.num_crops),
            *_size_lines(row),
            *([("time", time)] if time else []),
            *(("made by", _origin_line(origin)) for origin in made["made_by"]),
        ]
    )
    if errors:
        emit_table(*error_table(errors))


def _size_lines(row: ViewRow) -> Lines:
    counts = f"{row.complete} complete, {row.partial} partial, {row.quarantined} in quarantine"
    lines = [("videos", counts), ("frames", f"{row.num_frames:,} ({human_bytes(row.size_bytes)})")]
    if row.num_packed:
        lines.append(("packed", f"{row.num_packed:,} single images, up to 16 to a shard"))
    if row.num_borrowed:
        lines.append(("reused", f"{row.num_borrowed:,} frames lie in rows of other videos"))
    canvases = ", ".join(f"{name}: {count:,}" for name, count in row.canvases.items())
    return [*lines, ("canvases", canvases)]


def _print_manifest(view: View, *, as_json: bool) -> None:
    from fcache.manifest import Manifest

    manifests = view.index.manifests()
    if not manifests:
        raise CacheNotFoundError(f"view {view.key} embeds no manifest.")
    if as_json:
        emit_json("info.manifest", {"manifests": manifests})
        return
    print(Manifest.model_validate(manifests[-1]).to_toml(), end="")


def _origin_line(origin: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in origin.items())
