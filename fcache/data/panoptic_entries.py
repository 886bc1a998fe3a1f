"""Where in a panoptic JSON each frame's entry lies, in VIPSeg's and in COCO's shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fcache.data.json_stream import JsonWalk, Span
from fcache.data.panoptic_json import read_categories
from fcache.errors import LabelError
from fcache.manifest import Category


@dataclass(frozen=True, slots=True)
class Entry:
    """A frame's entry in a JSON.

    Attributes:
        file_name: Of the PNG, in its folder; as the JSON writes it, empty where it does not.
        span: Where in the JSON the entry lies.
    """

    file_name: str
    span: Span

    @property
    def stem(self) -> str:
        """The file's name without folders and suffix."""
        return PurePosixPath(self.file_name).stem


@dataclass(frozen=True, slots=True)
class VideoEntries:
    """What JSON of VIPSeg's shape lists.

    Attributes:
        names: Frame names by video, of ``videos``.
        entries: Frame entries by video, of ``annotations``.
        categories: By ascending id; none where it lists none.
    """

    names: dict[str, list[str]]
    entries: dict[str, list[Entry]]
    categories: tuple[Category, ...]


@dataclass(frozen=True, slots=True)
class ImageEntries:
    """What JSON of COCO's shape lists.

    Attributes:
        entries: By image id.
        categories: By ascending id; none where it lists none.
    """

    entries: dict[int | str, Entry]
    categories: tuple[Category, ...]


def walk_videos(path: Path, what: str) -> VideoEntries:
    """Returns the videos of a JSON and where their entries lie.

    Args:
        path: JSON of VIPSeg's shape.
        what: Names its role in errors.

    Raises:
        LabelError: the file is damaged, has another shape, or lists a video twice.
    """
    names: dict[str, list[str]] = {}
    entries: dict[str, list[Entry]] = {}
    categories: tuple[Category, ...] = ()
    with JsonWalk(path, what) as walk:
        for key in walk.members():
            if key == "categories":
                categories = _categories(walk)
                continue
            if key not in {"videos", "annotations"}:
                walk.value()
                continue
            inner = "images" if key == "videos" else "annotations"
            for _ in walk.items():
                video_id, found = _walk_video(walk, inner)
                if video_id in (names if key == "videos" else entries):
                    raise LabelError(f"'{path}', {what}, lists video '{video_id}' twice.")
                if key == "videos":
                    names[video_id] = [entry.stem for entry in found]
                else:
                    entries[video_id] = found
    return VideoEntries(names, entries, categories)


def _walk_video(walk: JsonWalk, inner: str) -> tuple[str, list[Entry]]:
    video_id: Any = None
    entries: list[Entry] | None = None
    for key in walk.members():
        if key == "video_id":
            video_id = walk.value()[0]
        elif key == inner:
            entries = [_entry(walk) for _ in walk.items()]
        else:
            walk.value()
    if video_id is None or entries is None:
        raise LabelError(
            f"'{walk.path}', {walk.what}, has a video '{video_id}' without "
            f"{'video_id' if video_id is None else inner}."
        )
    return str(video_id), entries


def walk_images(path: Path, what: str) -> ImageEntries:
    """Returns the images of a JSON and where their entries lie.

    Args:
        path: JSON of COCO's shape.
        what: Names its role in errors.

    Raises:
        LabelError: the file is damaged, has another shape, or lists an image twice.
    """
    images: dict[int | str, Entry] = {}
    categories: tuple[Category, ...] = ()
    with JsonWalk(path, what) as walk:
        for key in walk.members():
            if key == "categories":
                categories = _categories(walk)
                continue
            if key != "annotations":
                walk.value()
                continue
            for _ in walk.items():
                row, span = walk.value()
                if not isinstance(row, dict) or not {"image_id", "file_name"} <= row.keys():
                    raise LabelError(f"'{path}', {what}, has an entry without image_id, file_name.")
                if row["image_id"] in images:
                    raise LabelError(f"'{path}', {what}, lists image {row['image_id']} twice.")
                images[row["image_id"]] = Entry(str(row["file_name"]), span)
    return ImageEntries(images, categories)


def _categories(walk: JsonWalk) -> tuple[Category, ...]:
    rows = walk.value()[0]
    try:
        found = read_categories(rows)
        unsaid = [row["id"] for row in rows if "isthing" not in row]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(
            f"'{walk.path}', {walk.what}, lists 'categories' that are not all with id, name and "
            f"isthing: {error!r}."
        ) from error
    if unsaid:
        raise LabelError(
            f"'{walk.path}', {walk.what}, does not say of category {unsaid[0]} whether it "
            "isthing; things and stuff are scored apart."
        )
    return tuple(sorted(found, key=lambda category: category.id))


def _entry(walk: JsonWalk) -> Entry:
    row, span = walk.value()
    return Entry(str(row.get("file_name", "")) if isinstance(row, dict) else "", span)


def check_order(video_id: str, names: list[str], entries: list[Entry], path: Path) -> None:
    """Accepts entries that fit the frames of a video one to one, in their order.

    Raises:
        LabelError: there are more or fewer, or an entry names another of the frames.
    """
    found = [entry.stem for entry in entries]
    if len(found) != len(names):
        absent = [name for name in names if name not in set(found)]
        first = f"; the first without is frame '{absent[0]}'" if absent and any(found) else ""
        raise LabelError(
            f"video '{video_id}' has {len(found)} entries in '{path}' and {len(names)} frames in "
            f"the ground truth; expected one a frame{first}."
        )
    known = set(names)
    if len(known) < len(names):
        raise LabelError(f"video '{video_id}' of '{path}' has two frames of one name.")
    for position, (name, stem) in enumerate(zip(names, found, strict=True)):
        # A name that no frame has is a writer's habit; another frame's name is another order.
        if stem != name and stem in known:
            raise LabelError(
                f"video '{video_id}': entry {position} of '{path}' is for frame '{stem}' and the "
                f"ground truth has frame '{name}' there; entries are paired by position."
            )
