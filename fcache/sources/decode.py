"""The selected frames of any source, decoded one at a time.

Decoding is deterministic: one decoder thread, bit-exact colour conversion, and a fixed order, so
that the same file and the same library versions give the same bytes. It is lazy: a few frames are
held, never the video. ``reader.py`` says what counts as damage and what damage cannot be seen;
``sample.py`` says which frames a selection takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from av.video.reformatter import VideoReformatter

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.manifest import SourceKind
from fcache.sources.colour import to_rgb
from fcache.sources.frame import Frame
from fcache.sources.images import frame_files, image_size, read_image
from fcache.sources.sample import require_no_clock, sample
from fcache.sources.video import Picture, read_pictures

__all__ = ["Frame", "decode", "list_selected"]

Wanted = Callable[[int], bool]


class Selected(NamedTuple):
    """A frame that a selection takes, before its picture is converted or its file opened."""

    source_index: int
    name: str
    load: Callable[[], Frame]


def decode(
    path: Path,
    kind: SourceKind,
    selection: Selection,
    *,
    wanted: Wanted | None = None,
    skip: Wanted | None = None,
) -> Iterator[Frame | None]:
    """Yields the selected frames in presentation order.

    Position k of the iterator is the k-th selected frame that is not skipped. Where ``wanted(k)``
    is false it is None: a video frame is decoded but not converted, an image is not opened, so that
    a resumed job skips cheaply. Closing the iterator early closes the file.

    Args:
        path: A file, or for ``kind='frames'`` a folder.
        kind: What the source is.
        selection: Which frames are taken; skipping changes nothing about it.
        wanted: Told the position among the frames that are not skipped.
        skip: Told the source index of a selected frame; where true it is passed over as if it had
            not been selected. Skipping all frames is no error.

    Raises:
        SourceError: the true reason the source is broken, after its sound frames were yielded. With
            ``on_error="keep_prefix"`` the iterator ends quietly instead, unless no frame was sound.
            Also: the selection takes no frame, or asks for times where the source has none.
    """
    num_kept = 0
    with _selected(path, kind, selection) as (frames, sound):
        for source_index, name, load in frames:
            if skip is None or not skip(source_index):
                yield load() if wanted is None or wanted(num_kept) else None
                num_kept += 1
            sound.append((source_index, name))


def list_selected(path: Path, kind: SourceKind, selection: Selection) -> list[tuple[int, str]]:
    """Returns (source index, frame name) of the frames a selection takes.

    Opens no image, and decodes the whole of a video file, whose times only its pictures tell.

    Raises:
        SourceError: as ``decode``, of images for what can be told without opening one.
    """
    with _selected(path, kind, selection) as (frames, sound):
        for source_index, name, _ in frames:
            sound.append((source_index, name))
    return sound


@contextmanager
def _selected(
    path: Path, kind: SourceKind, selection: Selection
) -> Iterator[tuple[Generator[Selected], list[tuple[int, str]]]]:
    """Gives the frames, and where the sound ones are told; ends as ``on_error`` says.

    Raises:
        SourceError: the source is broken, or the selection takes no frame.
    """
    sound: list[tuple[int, str]] = []
    try:
        with closing(
            _video(path, selection) if kind == "video" else _images(path, kind, selection)
        ) as frames:
            yield frames, sound
    except SourceError:
        if not sound or selection.on_error != "keep_prefix":
            raise
    if not sound:
        raise SourceError(
            f"no frame is selected: start={selection.start} is after the last frame, "
            "or no frame lies before end=."
        )


def _video(path: Path, selection: Selection) -> Generator[Selected]:
    reformatter = VideoReformatter()

    def convert(picture: Picture) -> Frame:
        return Frame(
            rgb=to_rgb(picture.pixels, reformatter),
            source_index=picture.source_index,
            pts_us=round(picture.time * 1_000_000),
            name=_index_name(picture.source_index),
        )

    with closing(read_pictures(path)) as pictures:
        for picture in sample(pictures, selection):
            name = _index_name(picture.source_index)
            yield Selected(picture.source_index, name, partial(convert, picture))


def _index_name(source_index: int) -> str:
    return f"{source_index:05d}"


def _images(
    path: Path, kind: Literal["frames", "image"], selection: Selection
) -> Generator[Selected]:
    files = _chosen_files(path, kind, selection)

    @cache
    def first_size() -> tuple[int, int]:
        # The first file sets the size even when a resumed job does not want its pixels.
        return image_size(files[0][1])

    def open_frame(source_index: int, file: Path) -> Frame:
        rgb = read_image(file)
        size = first_size() if source_index else rgb.shape[:2]
        if rgb.shape[:2] != size:
            raise SourceError(
                f"the size changes: frame {source_index} ('{file.name}') is "
                f"{rgb.shape[1]}x{rgb.shape[0]}, the first was {size[1]}x{size[0]} "
                "(width x height). A folder is one video; single images are named one by one, "
                f"as '{path}/*{file.suffix}'."
            )
        return Frame(rgb=rgb, source_index=source_index, pts_us=None, name=file.stem)

    for source_index, file in files:
        yield Selected(source_index, file.stem, partial(open_frame, source_index, file))


def _chosen_files(
    path: Path, kind: Literal["frames", "image"], selection: Selection
) -> list[tuple[int, Path]]:
    require_no_clock(selection, "an image" if kind == "image" else "a folder of frames")
    files = [path] if kind == "image" else frame_files(path)
    chosen = islice(enumerate(files), 0, None, selection.stride)
    return list(islice(chosen, selection.max_frames))
