"""``fcache ls``, ``fcache info`` and ``fcache verify``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from fcache.cli.output import Progress, emit_json, emit_lines, emit_table, human_bytes
from fcache.errors import CacheCorruptError, CacheNotFoundError, ConfigError, nearest

if TYPE_CHECKING:
    from fcache.store.cache import View
    from fcache.store.verify import Finding

CachePath = Annotated[str, typer.Argument(metavar="CACHE[@KEY]", help="Folder of the cache.")]
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
        head = ("KEY", "MODEL", "DTYPE", "CANVASES", "VIDEOS", "FRAMES", "SIZE", "STATE")
        emit_table(
            head,
            [
                (
                    row.key,
                    row.model,
                    row.dtype,
                    " ".join(row.canvases),
                    f"{row.complete}/{row.complete + row.partial + row.quarantined}",
                    f"{row.num_frames:,}",
                    human_bytes(row.size_bytes),
                    row.state,
                )
                for row in views
            ],
        )
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
    emit_table(
        ("VIEW", "VIDEO", "STATE", "SPLIT", "CANVAS", "FRAMES", "SECONDS", "REASON"),
        [
            (
                key[:8],
                row.video_id,
                row.state,
                row.split or "",
                row.canvas,
                str(row.num_frames),
                f"{row.seconds:.2f}" if row.seconds is not None else "",
                row.reason,
            )
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
    from fcache.store.inspect import origins, summarise

    row = summarise(view)
    made = {**view.index.attributes["provenance"], "made_by": origins(view)}
    if as_json:
        emit_json("info", {"identity": view.identity, **asdict(row), "provenance": made})
        return
    emit_lines(_info_lines(view))
    emit_lines(
        [
            (
                "videos",
                f"{row.complete} complete, {row.partial} partial, {row.quarantined} in quarantine",
            ),
            ("frames", f"{row.num_frames:,} ({human_bytes(row.size_bytes)})"),
            ("canvases", ", ".join(f"{name}: {count:,}" for name, count in row.canvases.items())),
            *(("made by", _origin_line(origin)) for origin in made["made_by"]),
        ]
    )


def verify(
    cache: CachePath,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Take damaged shards back, so that extract makes them again."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that everything committed is there, and is what was committed."""
    from fcache.cache import open_cache
    from fcache.store.verify import unfinished

    opened = open_cache(cache)
    findings: list[Finding] = []
    partial: list[str] = []
    num_bytes = 0
    for view in opened.views:
        state, found, read_bytes = _verify_view(view)
        findings += found
        num_bytes += read_bytes
        partial += unfinished(view.index, state) if state else []
        if repair:
            _take_back(view, found)
    if as_json:
        emit_json(
            "verify",
            {
                "bytes": num_bytes,
                "findings": [{**asdict(one), "path": str(one.path)} for one in findings],
                "unfinished": partial,
            },
        )
    else:
        print(f"checked {human_bytes(num_bytes)}: {len(findings)} problems")
        for one in findings:
            print(
                f"  {one.path}: {one.problem}"
                + (f" ({', '.join(one.videos)})" if one.videos else "")
            )
        if partial:
            print(
                f"{len(partial)} videos are unfinished, first '{partial[0]}'; extract resumes them"
            )
    if findings:
        raise CacheCorruptError(
            f"{len(findings)} problems in '{opened.path}'"
            + (", taken back; run the same extract again." if repair else "."),
            run=None if repair else f"fcache verify '{opened.path}' --repair",
        )
    if partial:
        raise typer.Exit(1)


def _verify_view(view: View) -> tuple[Any, list[Finding], int]:
    from fcache.store.verify import check_metadata, check_shards, readable_state

    state, findings = readable_state(view.index)
    if state is None:
        return None, findings, 0
    findings += check_metadata(view.index, state)
    num_bytes = 0
    with Progress("verify", len(list(state.shards.keys())), "files") as progress:
        for checked in check_shards(view.index, state):
            findings += checked.findings
            num_bytes += checked.size_bytes
            progress.advance(1, checked.size_bytes)
    return state, findings, num_bytes


def _take_back(view: View, findings: list[Finding]) -> None:
    shards: dict[Any, set[int]] = {}
    for one in findings:
        if one.bucket is not None and one.shard is not None:
            shards.setdefault(one.bucket, set()).add(one.shard)
    for bucket, numbers in shards.items():
        view.index.forget(bucket, numbers)


def _print_manifest(view: View, *, as_json: bool) -> None:
    from fcache.manifest import Manifest

    manifests = view.index.manifests()
    if not manifests:
        raise CacheNotFoundError(f"view {view.key} embeds no manifest.")
    if as_json:
        emit_json("info.manifest", {"manifests": manifests})
        return
    print(Manifest.model_validate(manifests[-1]).to_toml(), end="")


def _info_lines(view: View) -> list[tuple[str, str]]:
    identity = view.identity
    backbone, layout = identity["backbone"], view.index.layout
    recipe = view.index.attributes["provenance"].get("recipe", {})
    weights = recipe.get("weights", "unknown")
    untrained = "  UNTRAINED" if str(weights).startswith("random:") else ""
    kind = "plain ViT" if layout.plain else "pyramid"
    stages = "  ".join(
        f"{channels} ch at stride {stride}"
        for channels, stride in zip(layout.channels, layout.strides, strict=True)
    )
    if layout.plain:
        blocks = ", ".join(str(block) for block in backbone["blocks"])
        stages = f"after blocks {blocks}: {layout.channels[0]} ch, {layout.strides[0]} px a token"
    geometry = ", ".join(
        f"{name}={value}" for name, value in identity["view"].items() if value not in (None, False)
    )
    return [
        ("key", view.key),
        ("backbone", f"{backbone['model']} ({kind})"),
        ("weights", f"{weights}{untrained}  sha256 {backbone['weights_sha256'][:16]}"),
        ("stages", stages),
        ("values", f"{identity['dtype']}, computed in {identity['compute_dtype']}"),
        ("view", geometry),
        (
            "normalised",
            f"mean {identity['normalisation']['mean']}, std {identity['normalisation']['std']}",
        ),
        ("decoded by", ", ".join(f"{kind}: {name}" for kind, name in identity["decoder"].items())),
    ]


def _origin_line(origin: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in origin.items())
