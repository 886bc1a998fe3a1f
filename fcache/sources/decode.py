"""The selected frames of any source, decoded one at a time.

Decoding is deterministic: one decoder thread, bit-exact colour conversion, and a fixed order, so
that the same file and the same library versions give the same bytes. It is lazy: a few frames are
held, never the video. ``reader.py`` says what counts as damage and what damage cannot be seen;
``sample.py`` says which frames a selection takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from av.video.reformatter import VideoReformatter

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.manifest import SourceKind
from fcache.sources.colour import to_rgb
from fcache.sources.frame import Frame
from fcache.sources.images import frame_files, image_size, read_image
from fcache.sources.sample import require_no_clock, sample
from fcache.sources.video import read_pictures

__all__ = ["Frame", "decode"]

Wanted = Callable[[int], bool]


def decode(
    path: Path,
    kind: SourceKind,
    selection: Selection,
    *,
    wanted: Wanted | None = None,
) -> Iterator[Frame | None]:
    """Yields the selected frames in presentation order.

    Position k of the iterator is selected frame k. Where ``wanted(k)`` is false it is None: a video
    frame is decoded but not converted, an image is not opened, so that a resumed job skips cheaply.
    Closing the iterator early closes the file.

    Raises:
        SourceError: the true reason the source is broken, after its sound frames were yielded. With
            ``on_error="keep_prefix"`` the iterator ends quietly instead, unless no frame was sound.
            Also: the selection takes no frame, or asks for times where the source has none.
    """
    if kind == "video":
        frames = _decode_video(path, selection, wanted)
    else:
        require_no_clock(selection, "an image" if kind == "image" else "a folder of frames")
        frames = _decode_images(path, kind, selection, wanted)
    num_frames = 0
    with closing(frames):
        try:
            for frame in frames:
                yield frame
                num_frames += 1
        except SourceError:
            if num_frames == 0 or selection.on_error != "keep_prefix":
                raise


def _decode_video(
    path: Path, selection: Selection, wanted: Wanted | None
) -> Generator[Frame | None]:
    reformatter = VideoReformatter()
    num_taken = 0
    with closing(read_pictures(path)) as pictures:
        for k, picture in enumerate(sample(pictures, selection)):
            num_taken += 1
            if wanted is not None and not wanted(k):
                yield None
                continue
            yield Frame(
                rgb=to_rgb(picture.pixels, reformatter),
                source_index=picture.source_index,
                pts_us=round(picture.time * 1_000_000),
                name=f"{picture.source_index:05d}",
            )
    if num_taken == 0:
        raise SourceError(
            f"no frame is selected: start={selection.start} is after the last frame, "
            "or no frame lies before end=."
        )


def _decode_images(
    path: Path, kind: SourceKind, selection: Selection, wanted: Wanted | None
) -> Generator[Frame | None]:
    files = [path] if kind == "image" else frame_files(path)
    size: tuple[int, int] | None = None
    chosen = islice(enumerate(files), 0, None, selection.stride)
    for k, (source_index, file) in enumerate(islice(chosen, selection.max_frames)):
        if wanted is not None and not wanted(k):
            yield None
            continue
        # The first file sets the size even when a resumed job does not want its pixels.
        size = size or image_size(files[0])
        rgb = read_image(file)
        if rgb.shape[:2] != size:
            raise SourceError(
                f"the size changes: frame {source_index} ('{file.name}') is "
                f"{rgb.shape[1]}x{rgb.shape[0]}, the first was {size[1]}x{size[0]} "
                "(width x height)."
            )
        yield Frame(rgb=rgb, source_index=source_index, pts_us=None, name=file.stem)
