"""``fcache data``: manifests of the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcache.cli.output import Progress, emit_json, emit_table, human_bytes
from fcache.errors import QUARANTINED_EXIT_CODE, ConfigError, LabelError

if TYPE_CHECKING:
    from fcache.data.label_check import LabelReport
    from fcache.manifest import Manifest
    from fcache.sources.listing import Listing

app = typer.Typer(help="Describe, check and prepare data sets.", no_args_is_help=True)

MAX_SHOWN = 20


@app.callback()
def data() -> None:
    """Describe, check and prepare data sets."""


@app.command()
def init(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR | NAME ROOT [KEY=VALUE...]",
            help="A folder of videos, or a shipped (or own) manifest and its root; "
            "then fps=, stride=, start=, end=, max_frames=, on_error=.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The manifest to write; JSON if it ends in .json, which is read much faster.",
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    no_hash: Annotated[
        bool, typer.Option("--no-hash", help="Leave out content hashes: reads no file in full.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what was found; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a manifest of what lies on disk: videos, hashes, sizes, splits, labels."""
    from fcache.config import Selection, resolve, split_overrides

    plain, overrides = split_overrides(words)
    sampling = resolve(Selection, {}, overrides).model_dump(exclude_defaults=True)
    if output.exists() and not (force or plan):
        raise ConfigError(f"'{output}' exists; pass --force to replace it, or another -o FILE.")
    template, name, root, listing = _read_arguments(plain)
    if plan:
        _print_plan(listing, as_json=as_json)
        return
    manifest, unreadable, report = _describe(
        listing, template, name, root, sampling, hash_content=not no_hash
    )
    manifest.write(output, force=force)
    facts = _facts(manifest, listing, unreadable, report, output)
    if as_json:
        emit_json("data.init", facts)
    else:
        _print_table(facts)
    if unreadable:
        raise typer.Exit(QUARANTINED_EXIT_CODE)


def _read_arguments(plain: list[str]) -> tuple[Manifest | None, str, Path, Listing]:
    from fcache.errors import nearest
    from fcache.manifest import MANIFEST_SUFFIXES, load_manifest, manifest_names
    from fcache.sources.listing import scan, scan_manifest

    if len(plain) not in {1, 2}:
        raise ConfigError(
            f"{len(plain)} plain words are given ({', '.join(plain)}); expected DIR, or NAME ROOT."
        )
    first = Path(plain[0]).expanduser()
    if len(plain) == 1 and first.is_dir():
        root = first.absolute()
        return None, root.resolve().name or "data", root, scan([root])
    if len(plain) == 1 and plain[0] in manifest_names():
        raise ConfigError(
            f"the shipped manifest '{plain[0]}' needs the folder that holds the data.",
            run=f"fcache data init {plain[0]} ROOT -o mine.toml",
        )
    if len(plain) == 1 and first.suffix not in MANIFEST_SUFFIXES:
        raise ConfigError(
            f"'{plain[0]}' is neither a folder nor a shipped manifest"
            f"{nearest(plain[0], manifest_names())}."
        )
    root_given = Path(plain[1]).expanduser() if len(plain) == 2 else None
    if root_given is not None and not root_given.is_dir():
        raise ConfigError(f"root '{plain[1]}' is not a folder.")
    template = load_manifest(plain[0], root_given)
    return template, template.name, template.locate("", "the data"), scan_manifest(template)


def _describe(
    listing: Listing,
    template: Manifest | None,
    name: str,
    root: Path,
    sampling: dict[str, Any],
    *,
    hash_content: bool,
) -> tuple[Manifest, list[tuple[str, str]], LabelReport | None]:
    from fcache.data.label_check import LabelReport, check_labels
    from fcache.data.label_folder import NoLabelsError, labels_in_folder
    from fcache.data.labels import LabelReader
    from fcache.sources.catalog import build_manifest
    from fcache.sources.content import HashMemo

    with Progress("data init", len(listing.sources), unit="sources") as progress:
        manifest, unreadable = build_manifest(
            listing.sources,
            name=name,
            root=root,
            template=template,
            sampling=sampling,
            hash_content=hash_content,
            memo=HashMemo(),
            on_done=lambda _: progress.advance(1),
        )
    if template is None:
        try:
            labels, categories = labels_in_folder(root, beside_images=True)
        except NoLabelsError:
            return manifest, unreadable, None
        except (ConfigError, LabelError) as error:
            return manifest, unreadable, LabelReport(problems=[("all", error.message)])
        reader = LabelReader(labels, categories, root, origin=f"'{root}'", guessed=True)
        report = check_labels(reader, manifest)
        found = {"labels": tuple(report.used), "categories": categories if report.used else ()}
        return manifest.model_copy(update=found), unreadable, report
    if not manifest.labels:
        return manifest, unreadable, None
    return manifest, unreadable, check_labels(LabelReader.from_manifest(manifest), manifest)


def _facts(
    manifest: Manifest,
    listing: Listing,
    unreadable: list[tuple[str, str]],
    report: LabelReport | None,
    output: Path,
) -> dict[str, Any]:
    from fcache.sources.catalog import source_bytes

    labelled = report.labelled if report else set()
    sizes = {source.video_id: source_bytes(source) for source in listing.sources}
    splits: dict[str, dict[str, int]] = {}
    for video in manifest.videos:
        row = splits.setdefault(
            video.split or "-", {"videos": 0, "frames": 0, "bytes": 0, "labelled": 0}
        )
        row["videos"] += 1
        row["frames"] += video.num_frames or 0
        row["bytes"] += sizes[video.id]
        row["labelled"] += video.id in labelled
    misfits = report.problems if report else []
    things = sum(category.isthing for category in manifest.categories)
    return {
        "manifest": str(output),
        "sha256": manifest.sha256,
        "root": manifest.root,
        "splits": splits,
        "categories": {"things": things, "stuff": len(manifest.categories) - things},
        "labels": sorted({entry.format for entry in manifest.labels}),
        "unreadable": [{"video": video, "reason": reason} for video, reason in unreadable],
        "label_problems": [{"video": video, "reason": reason} for video, reason in misfits],
        "notes": [{"path": path, "reason": reason} for path, reason in listing.notes],
    }


def _print_table(facts: dict[str, Any]) -> None:
    print(f"wrote {facts['manifest']} (root {facts['root']})")
    rows = [
        (
            split,
            str(row["videos"]),
            str(row["frames"]),
            human_bytes(row["bytes"]),
            str(row["labelled"]),
        )
        for split, row in facts["splits"].items()
    ]
    emit_table(("split", "videos", "frames", "size", "labelled"), rows)
    counts = facts["categories"]
    print(
        f"categories: {counts['things'] + counts['stuff']} ({counts['things']} things, "
        f"{counts['stuff']} stuff); labels: {', '.join(facts['labels']) or 'none'}"
    )
    for key, title in (("unreadable", "unreadable"), ("label_problems", "labels that do not fit")):
        _print_list(title, [(item["video"], item["reason"]) for item in facts[key]])
    _print_list("notes", [(item["path"], item["reason"]) for item in facts["notes"]])


def _print_list(title: str, pairs: list[tuple[str, str]]) -> None:
    if not pairs:
        return
    print(f"{title}: {len(pairs)}")
    for name, why in pairs[:MAX_SHOWN]:
        print(f"  {name}: {why}")
    if len(pairs) > MAX_SHOWN:
        print(f"  and {len(pairs) - MAX_SHOWN} more")


def _print_plan(listing: Listing, *, as_json: bool) -> None:
    kinds = {"video": 0, "frames": 0, "image": 0}
    for source in listing.sources:
        kinds[source.kind] += 1
    if as_json:
        notes = [{"path": path, "reason": reason} for path, reason in listing.notes]
        emit_json("data.init.plan", {"sources": kinds, "notes": notes})
        return
    print(
        f"would list {len(listing.sources)} sources: {kinds['video']} video files, "
        f"{kinds['frames']} frame folders, {kinds['image']} images"
    )
    _print_list("notes", listing.notes)
