"""A manifest written from what lies on disk: hashes, sizes and frame counts of every source."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fcache.errors import SourceError
from fcache.manifest import Category, Labels, Manifest, Video
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.images import frame_files
from fcache.sources.listing import Source
from fcache.sources.probe import probe_source


def build_manifest(
    sources: Sequence[Source],
    *,
    name: str,
    root: Path | None = None,
    template: Manifest | None = None,
    labels: Sequence[Labels] = (),
    categories: Sequence[Category] = (),
    sampling: Mapping[str, int | float | str] | None = None,
    hash_content: bool = True,
    memo: HashMemo | None = None,
    on_done: Callable[[Source], None] | None = None,
    threads: int = 4,
) -> tuple[Manifest, list[tuple[str, str]]]:
    """Returns a manifest that lists ``sources``, and (video id, reason) for the unreadable ones.

    An unreadable source stays in the manifest without sizes, so that a job quarantines it with its
    reason instead of missing it. Paths below ``root`` are stored relative to it.

    Args:
        sources: From ``list_sources`` or ``from_manifest``.
        name: The manifest's name.
        root: The folder paths count from; None for the deepest folder that holds all sources.
        template: Gives the labels, categories and sampling that are not given here.
        labels: How labels are stored, relative to ``root``.
        categories: The categories, in model order.
        sampling: Settings of ``fcache.config.Selection``.
        hash_content: Whether every byte is read for the content hash.
        memo: Spares reading what has not changed; saved here, also when interrupted.
        on_done: Called after each source, in order.
        threads: Sources read at once.
    """
    top = Path(os.path.abspath(root)) if root is not None else _common_folder(sources)
    videos: list[Video] = []
    problems: list[tuple[str, str]] = []
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(_read_source, source, top, memo, hash_content=hash_content)
            for source in sources
        ]
        try:
            for source, job in zip(sources, jobs, strict=True):
                video, reason = job.result()
                videos.append(video)
                if reason is not None:
                    problems.append((source.video_id, reason))
                if on_done is not None:
                    on_done(source)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            if memo is not None:
                memo.save()
    base = template or Manifest(name=name)
    manifest = Manifest(
        name=name,
        about=base.about,
        root=str(top),
        sampling=dict(sampling) if sampling else base.sampling,
        labels=tuple(labels) or base.labels,
        categories=tuple(categories) or base.categories,
        videos=tuple(videos),
    )
    return manifest, problems


def source_bytes(source: Source) -> int:
    """Returns the size of a source's files in bytes; what cannot be read counts as zero."""
    try:
        paths = frame_files(source.path) if source.kind == "frames" else [source.path]
        return sum(path.stat().st_size for path in paths)
    except (OSError, SourceError):
        return 0


def _common_folder(sources: Sequence[Source]) -> Path:
    if not sources:
        raise ValueError("a manifest without root needs at least one source")
    return Path(os.path.commonpath([source.path.parent for source in sources]))


def _read_source(
    source: Source, root: Path, memo: HashMemo | None, *, hash_content: bool
) -> tuple[Video, str | None]:
    path = str(source.path.relative_to(root) if source.path.is_relative_to(root) else source.path)
    video = Video(id=source.video_id, path=path, kind=source.kind, split=source.split)
    try:
        if hash_content:
            sha256 = content_hash(source.path, source.kind, memo)
            video = video.model_copy(update={"sha256": sha256})
        facts = probe_source(source.path, source.kind)
    except SourceError as error:
        return video, error.message
    sizes = {"num_frames": facts.num_frames, "height": facts.height, "width": facts.width}
    return video.model_copy(update=sizes), None
