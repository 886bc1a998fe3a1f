"""What a job reads: videos, folders of frames and single images, found from words or a manifest.

``fcache.sources.walk`` says how a folder is read. A video id is the path below the given root
without suffix, ``/`` between the parts, a last folder that only says "frames here" dropped; a
video that is the root itself is called by the root's name. Sources that would share an id keep
what was dropped, and where that does not part them, take their parent folders in front.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fcache.errors import ConfigError, nearest
from fcache.manifest import MANIFEST_SUFFIXES, Manifest, SourceKind
from fcache.sources.layouts import scan_layout
from fcache.sources.walk import (
    FRAME_FOLDERS,
    STILL_SUFFIXES,
    VIDEO_SUFFIXES,
    Found,
    Notes,
    kind_of_file,
    walk,
)

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """One source of frames; ``video_id`` is unique within a listing, ``path`` is absolute."""

    video_id: str
    path: Path
    kind: SourceKind
    split: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What was found, and (path, reason) notes on what was passed over."""

    sources: list[Source] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def list_sources(words: Sequence[str | Path]) -> list[Source]:
    """Returns the sources that ``words`` name, sorted by video id; notes go to the log.

    The split is the first folder of the id's path that is called ``train``, ``val``, ``test`` or a
    usual synonym.

    Args:
        words: Folders (read with everything below them), files, and glob patterns (``**`` allowed).
            A file named outright is taken whatever its suffix.

    Raises:
        ConfigError: a word names nothing, names a folder that cannot be read, or nothing was found.
    """
    return _logged(scan(words))


def from_manifest(manifest: Manifest) -> list[Source]:
    """Returns the sources of a manifest, by its list or by its layout; notes go to the log.

    Raises:
        ConfigError: there is no root, no list and no layout, or nothing fits the layout.
    """
    return _logged(scan_manifest(manifest))


def _logged(listing: Listing) -> list[Source]:
    for path, reason in listing.notes:
        log.warning("'%s' %s", path, reason)
    return listing.sources


def scan_manifest(manifest: Manifest) -> Listing:
    """Returns the sources of a manifest, and notes.

    Raises:
        ConfigError: as ``from_manifest``.
    """
    if manifest.videos:
        return Listing(
            [
                Source(
                    video.id,
                    manifest.locate(video.path, f"video '{video.id}'"),
                    video.kind,
                    video.split,
                )
                for video in manifest.videos
            ]
        )
    if manifest.layout is None:
        raise ConfigError(
            f"manifest '{manifest.name}' has neither a list of videos nor a layout.",
            run="fcache data init FOLDER -o mine.toml",
        )
    root = manifest.locate("", "the data")
    if not root.is_dir():
        raise ConfigError(f"root '{root}' of manifest '{manifest.name}' is not a folder.")
    notes = Notes()
    placed = scan_layout(manifest.layout, root, notes)
    sources = [Source(item.video_id, item.path, item.kind, item.split) for item in placed]
    return Listing(sources, notes.all())


def scan(words: Sequence[str | Path]) -> Listing:
    """Returns what ``words`` name, and notes on what was passed over.

    Raises:
        ConfigError: as ``list_sources``.
    """
    if not words:
        raise ConfigError("no source is given; expected a folder, video files, or a glob pattern.")
    notes = Notes()
    found: dict[str, Found] = {}
    for word in words:
        for item in _read_word(str(word), notes):
            found.setdefault(str(item.path), item)
    unique = [item for item in found.values() if _is_text(item.path, notes)]
    if not unique:
        passed = "".join(f" '{path}' {reason}." for path, reason in notes.all()[:3])
        raise ConfigError(
            f"no video was found in {', '.join(repr(str(word)) for word in words)}; expected video "
            "files (.mp4, .mkv, .webm, .avi, .mov and others), folders of at least two images, or "
            f"single images named one by one.{passed}"
        )
    sources = [
        Source(video_id, item.path, item.kind, _split_of(item))
        for video_id, item in zip(_distinct_ids(unique), unique, strict=True)
    ]
    return Listing(sorted(sources, key=lambda source: source.video_id), notes.all())


def _is_text(path: Path, notes: Notes) -> bool:
    """False, with a note, for a name that no text file could hold."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        notes.add(shown, "was left out: its name is not valid UTF-8; rename it")
        return False
    return True


def _read_word(word: str, notes: Notes) -> Iterator[Found]:
    path = Path(os.path.abspath(os.path.expanduser(word)))
    if path.is_dir():
        try:
            os.scandir(path).close()
        except OSError as error:
            raise ConfigError(
                f"folder '{word}' cannot be read: {error.strerror}; expected a readable folder."
            ) from error
        yield from walk(path, path, notes)
    elif path.exists():
        if path.suffix in MANIFEST_SUFFIXES:
            raise ConfigError(f"'{word}' is not a video; a manifest is given as manifest={word}.")
        yield Found(path.parent, path, kind_of_file(path))
    elif glob.has_magic(word):
        yield from _read_glob(word, notes)
    else:
        raise ConfigError(_missing(word, path))


def _missing(word: str, path: Path) -> str:
    if path.is_symlink():
        return f"'{word}' is a link to '{os.readlink(path)}', which does not exist."
    while not path.parent.is_dir():
        path = path.parent
    try:
        close = nearest(path.name, os.listdir(path.parent))
    except OSError:
        close = ""
    return f"'{word}' does not exist: '{path.parent}' holds no '{path.name}'{close}."


def _read_glob(word: str, notes: Notes) -> Iterator[Found]:
    pattern = os.path.abspath(os.path.expanduser(word))
    parts = Path(pattern).parts
    first_magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first_magic])
    suffix = PurePosixPath(pattern).suffix.lower()
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise ConfigError(f"pattern '{word}' matches nothing below '{root}'.")
    for match in map(Path, matches):
        if match.is_dir():
            yield from walk(match, root, notes)
        elif match.suffix.lower() in (VIDEO_SUFFIXES | STILL_SUFFIXES | {suffix}):
            yield Found(root, match, kind_of_file(match))


def _short_id(item: Found) -> str:
    parts = item.path.relative_to(item.root).parts or (item.path.name,)
    if item.kind != "frames":
        return "/".join((*parts[:-1], Path(parts[-1]).stem))
    if parts[-1].lower() not in FRAME_FOLDERS:
        return "/".join(parts)
    # A root called 'images', or its only folder of that name: the folder above names the video.
    return "/".join(parts[:-1]) or item.path.parent.name or item.path.name


def _long_id(item: Found, num_parents: int) -> str:
    parts = item.path.relative_to(item.root).parts or (item.path.name,)
    above = item.path.parts[1 : len(item.path.parts) - len(parts)]  # without '/': never absolute
    return "/".join((*above[max(0, len(above) - num_parents) :], *parts))


def _distinct_ids(items: list[Found]) -> list[str]:
    ids = [_short_id(item) for item in items]
    num_parents = 0
    # Ends: paths differ, and with all parents an id is the whole path.
    while len(counts := Counter(ids)) < len(ids):
        ids = [
            _long_id(item, num_parents) if counts[own] > 1 else own
            for own, item in zip(ids, items, strict=True)
        ]
        num_parents += 1
    return ids


def _split_of(item: Found) -> str | None:
    for part in item.path.relative_to(item.root).parts[:-1]:
        if part.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[part.lower()]
    return None
