"""What a folder holds: videos, folders of frames, single images.

- A file whose suffix is a known video suffix is a video, whatever its size or content.
- A folder that directly holds two images or more is one video made of frames, as is a folder with
  one image if its name says so (``images``, ``frames``, ``rgb``, ``origin``, ``JPEGImages``...).
  Images meant to stand alone are named one by one, by a pattern (``'val2017/*.jpg'``), or by a
  manifest.
- Any other folder with one image yields that image.
- Images beside video files are thumbnails and are left out; so are label folders (``semantic``,
  ``masks``, ``panoptic``...), Zarr stores and hidden names. The first two are noted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fcache.manifest import SourceKind
from fcache.sources.images import IMAGE_SUFFIXES

# fmt: off
VIDEO_SUFFIXES = frozenset(
    {
        ".3gp", ".asf", ".avi", ".divx", ".dv", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf",
        ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
        ".mts", ".mxf", ".nut", ".obu", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)
FRAME_FOLDERS = frozenset(
    {
        "color", "colour", "frame", "frames", "image", "images", "img", "imgs", "jpegimages",
        "origin", "rgb",
    }
)
LABEL_FOLDERS = frozenset(
    {
        "annotation", "annotations", "gt", "gtfine", "label", "labels", "mask", "masks",
        "panomasks", "panomasksrgb", "panoptic", "segmentation", "segmentationclass",
        "segmentations", "semantic", "semantics",
    }
)
# fmt: on
# An animation is a video: a folder of .gif files holds videos, not frames.
STILL_SUFFIXES = IMAGE_SUFFIXES - VIDEO_SUFFIXES
STORE_FILES = frozenset({"zarr.json", ".zgroup", ".zarray"})


@dataclass(slots=True)
class Notes:
    """What was passed over: (path, reason) pairs worth telling the user."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    label_folders: list[str] = field(default_factory=list)

    def add(self, path: Path | str, reason: str) -> None:
        """Adds one note."""
        self.pairs.append((str(path), reason))

    def all(self) -> list[tuple[str, str]]:
        """Returns the notes; label folders, of which there may be thousands, in one."""
        if not self.label_folders:
            return list(self.pairs)
        count = len(self.label_folders)
        reason = "was left out: its name says that it holds labels"
        if count > 1:
            reason = f"and {count - 1} more folders were left out: their names say labels"
        return [*self.pairs, (self.label_folders[0], reason)]


@dataclass(frozen=True, slots=True)
class Found:
    """A source, and the folder that its id counts from."""

    root: Path
    path: Path
    kind: SourceKind


def kind_of_file(path: Path) -> SourceKind:
    """Returns ``image`` for an image suffix and ``video`` for any other: the decoder decides."""
    return "image" if path.suffix.lower() in STILL_SUFFIXES else "video"


def is_label_folder(name: str) -> bool:
    """True for a folder name that data sets give to label images."""
    return name.lower() in LABEL_FOLDERS or name.lower().startswith("panoptic_")


def walk(top: Path, root: Path, notes: Notes) -> Iterator[Found]:
    """Yields what lies in ``top`` and below, each real folder once, so that loops of links end.

    Folders reached without a link come first: they, rather than a link to them, give the id.
    """
    pending: list[Path] = [top]
    linked: list[Path] = []
    seen: set[str] = set()
    while pending or linked:
        folder = pending.pop() if pending else linked.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        names = _names(folder, notes)
        if any(entry.name in STORE_FILES for entry in names):
            continue
        visible = [entry for entry in names if not entry.name.startswith(".")]
        folders = [entry for entry in visible if _is_folder(entry)]
        files = [Path(entry.path) for entry in visible if _is_file(entry, notes)]
        yield from _members(files, folder, root, notes)
        notes.label_folders += [entry.path for entry in folders if is_label_folder(entry.name)]
        inner = [entry for entry in folders if not is_label_folder(entry.name)]
        linked += [Path(entry.path) for entry in inner if entry.is_symlink()]
        pending += [Path(entry.path) for entry in reversed(inner) if not entry.is_symlink()]


def _names(folder: Path, notes: Notes) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        notes.add(folder, f"was left out: {error.strerror}")
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that ends nowhere is no folder; _is_file notes it
        return False


def _is_file(entry: os.DirEntry[str], notes: Notes) -> bool:
    try:
        if entry.is_file():
            return True
        dangling = entry.is_symlink() and not entry.is_dir()
        reason = "it is a link to nothing"
    except OSError as error:
        dangling, reason = True, str(error.strerror)
    if dangling and Path(entry.name).suffix.lower() in VIDEO_SUFFIXES | STILL_SUFFIXES:
        notes.add(entry.path, f"was left out: {reason}")
    return False


def _members(files: list[Path], folder: Path, root: Path, notes: Notes) -> Iterator[Found]:
    """Yields what the files directly in one folder stand for."""
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in files if path.suffix.lower() in STILL_SUFFIXES]
    yield from (Found(root, path, "video") for path in videos)
    if videos and images:
        notes.add(folder, f"holds {len(images)} images beside videos; the images were left out")
    elif len(images) >= 2 or (images and folder.name.lower() in FRAME_FOLDERS):
        yield Found(root, folder, "frames")
    elif images:
        yield Found(root, images[0], "image")
