"""The videos of a data set whose manifest gives a layout instead of a list."""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fcache.errors import ConfigError
from fcache.manifest import Layout, SourceKind
from fcache.sources.walk import Notes, kind_of_file

_FIELD = re.compile(r"\{(video|split)\}")


@dataclass(frozen=True, slots=True)
class Placed:
    """One video that a layout's pattern found."""

    video_id: str
    path: Path
    kind: SourceKind
    split: str | None


def scan_layout(layout: Layout, root: Path, notes: Notes) -> list[Placed]:
    """Returns the videos below ``root`` that fit the layout, sorted by id.

    A split in the path wins over a split list. Lists that are absent, and listed videos that are
    not there, are noted.

    Raises:
        ConfigError: nothing fits the pattern, or a split list cannot be read.
    """
    pattern = _regex(layout.videos)
    fields: list[tuple[dict[str, str], str]] = []
    for name in sorted(glob.glob(_FIELD.sub("*", _escaped(layout.videos)), root_dir=root)):
        match = pattern.fullmatch(name)
        if match is not None:
            fields.append((match.groupdict(), name))
    if not fields:
        raise ConfigError(
            f"nothing below '{root}' fits the layout '{layout.videos}'; expected the folder that "
            f"holds '{PurePosixPath(layout.videos).parts[0]}'."
        )
    listed = _read_splits(layout, root, notes)
    placed = []
    for values, name in fields:
        path = root / name
        kind: SourceKind = "frames" if path.is_dir() else kind_of_file(path)
        split = values.get("split") or listed.get(values["video"])
        video_id = _FIELD.sub(lambda key, of=values: of[key[1]], layout.id)  # type: ignore[misc]
        placed.append(Placed(video_id, path, kind, split))
    _note_differences(listed, {values["video"] for values, _ in fields}, root, notes)
    return sorted(placed, key=lambda item: item.video_id)


def _escaped(pattern: str) -> str:
    return "".join(
        part if _FIELD.fullmatch(part) else glob.escape(part)
        for part in re.split(r"(\{(?:video|split)\})", pattern)
    )


def _regex(pattern: str) -> re.Pattern[str]:
    text, seen = "", set[str]()
    for part in re.split(r"(\{(?:video|split)\})", pattern):
        key = part[1:-1]
        if not _FIELD.fullmatch(part):
            text += re.escape(part)
        elif key in seen:
            text += f"(?P={key})"
        else:
            seen.add(key)
            text += f"(?P<{key}>[^/]+)"
    return re.compile(text)


def _read_splits(layout: Layout, root: Path, notes: Notes) -> dict[str, str]:
    listed: dict[str, str] = {}
    for split, name in layout.splits.items():
        path = root / name
        if not path.exists():
            notes.add(path, f"is absent: no video is known to be of split '{split}'")
            continue
        for video in read_split(path):
            listed[video] = split
    return listed


def read_split(path: Path) -> list[str]:
    """Returns the videos a split list names: a text file, or the JSON that holds its labels.

    Raises:
        ConfigError: the file cannot be read, or is JSON of another shape.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        table = json.loads(text)
        if "videos" in table:
            return [str(video["video_id"]) for video in table["videos"]]
        return [Path(image["file_name"]).stem for image in table["images"]]
    except OSError as error:
        raise ConfigError(f"split list '{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"split list '{path}' is neither one video a line nor JSON with 'videos' "
            f"(VIPSeg) or 'images' (COCO): {error!r}."
        ) from error


def _note_differences(listed: dict[str, str], there: set[str], root: Path, notes: Notes) -> None:
    absent = sorted(set(listed) - there)
    if absent:
        notes.add(root, f"lacks {len(absent)} videos of its split lists (first: '{absent[0]}')")
    unlisted = sorted(there - set(listed)) if listed else []
    if unlisted:
        notes.add(
            root, f"holds {len(unlisted)} videos that no split list names (first: '{unlisted[0]}')"
        )
