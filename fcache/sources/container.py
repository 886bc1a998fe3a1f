"""Opening a video file, and what its bytes promise before anything is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from fcache.errors import SourceError

# Playlists and name patterns read other files than the one whose content is hashed; "tty" draws
# any text file as a video.
REFUSED_FORMATS = frozenset({"concat", "dash", "hls", "image2", "imf", "tty"})

# Their index lists every packet; that of other formats lists key frames or nothing.
INDEXED_FORMATS = frozenset({"avi", "mov", "mp4"})

# FFmpeg's h264 and hevc decoders conceal damage unless told to fail on it.
STRICT_DECODING = {"err_detect": "crccheck+bitstream+buffer+explode"}


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yields the open container and its main video stream; the file is closed on leaving.

    The stream is the one FFmpeg calls best (resolution, default flag; never an attached picture).
    The decoder runs in the calling thread: threads would change which frames come out before an
    error, and one video a worker is how extraction uses its cores.

    Raises:
        SourceError: missing, empty, unreadable, not a video, or without a video stream.
    """
    _require_file(path)
    try:
        # The prefix keeps a name such as "a:b.mp4" from being read as a protocol.
        container = av.open(
            f"file:{path}",
            mode="r",
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",  # a title in another encoding is no reason to fail
        )
    except av.error.FFmpegError as error:
        raise SourceError(_why_not_opened(path, error)) from None
    with container:
        yield container, _main_stream(container)


def has_index(container: InputContainer) -> bool:
    """Tells whether the format's index lists every packet of a stream."""
    return bool(INDEXED_FORMATS & set(container.format.name.split(",")))


def _main_stream(container: InputContainer) -> VideoStream:
    if REFUSED_FORMATS & set(container.format.name.split(",")):
        raise SourceError(
            f"not a video: FFmpeg reads it as '{container.format.name}', a list or pattern of "
            "other files; expected one self-contained video file."
        )
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise SourceError("no frames: the file holds no video stream.")
    if stream.disposition & av.stream.Disposition.attached_pic:
        raise SourceError("no frames: the only picture is cover art, not a video stream.")
    if stream.codec_context is None:
        raise SourceError("no decoder: this FFmpeg cannot decode the file's video codec.")
    stream.codec_context.options = STRICT_DECODING
    stream.codec_context.thread_count = 1
    stream.thread_type = "NONE"
    return stream


def _require_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
    except IsADirectoryError:
        raise SourceError("not a video file: it is a folder.") from None
    except OSError as error:
        raise SourceError(f"the file cannot be read: {error.strerror}.") from None
    if size_bytes == 0:
        raise SourceError("the file is empty: zero bytes.")


def _why_not_opened(path: Path, error: av.error.FFmpegError) -> str:
    outline = read_outline(path)
    if outline.family == "mp4" and "moov" not in outline.names:
        return (
            "no frame index: the file has no 'moov' box; it was cut off or its recording was "
            "never finished."
        )
    if outline.cut:
        return f"truncated: {outline.cut}, and nothing before it can be read."
    return f"not a video FFmpeg can read: {error.strerror}."


@dataclass(frozen=True, slots=True)
class Outline:
    """The top-level structure of a video file.

    Attributes:
        family: Which structure was recognised.
        names: Names of the top-level boxes (mp4 only).
        cut: What the file's end cuts off, in words; empty for a whole file.
    """

    family: str  # "mp4", "matroska", "riff" or "other"
    names: tuple[str, ...] = ()
    cut: str = ""


def read_outline(path: Path) -> Outline:
    """Returns the top-level structure, reading headers only (a few kilobytes).

    FFmpeg ends quietly where Matroska or AVI data stop early; the sizes written in the structure
    tell. Structures without sizes (MPEG transport streams, raw streams, live WebM) cannot be told
    from shorter whole files.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(12)
        file.seek(0)
        if head[:4] == b"\x1aE\xdf\xa3":
            return Outline("matroska", cut=_matroska_cut(file, size_bytes))
        if head[:4] == b"RIFF":
            return Outline("riff", cut=_riff_cut(file, size_bytes))
        if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"}:
            return _mp4_outline(file, size_bytes)
    return Outline("other")


def _mp4_outline(file: BinaryIO, size_bytes: int) -> Outline:
    names: list[str] = []
    position = 0
    while position + 8 <= size_bytes:
        file.seek(position)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:  # this box reaches to the end of the file
            length = size_bytes - position
        if length < 8 or not name.isascii():
            break  # trailing bytes that are no box; players ignore them
        names.append(name.decode("ascii"))
        if position + length > size_bytes:
            return Outline("mp4", tuple(names), _cut(names[-1], position + length, size_bytes))
        position += length
    return Outline("mp4", tuple(names))


def _riff_cut(file: BinaryIO, size_bytes: int) -> str:
    position = 0
    while position + 8 <= size_bytes:
        file.seek(position)
        header = file.read(8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF" or length == 0:  # 0: a recording that never wrote its size
            return ""
        end = position + 8 + length
        if end > size_bytes:
            return _cut("RIFF", end, size_bytes)
        position = end + length % 2
    return ""


def _matroska_cut(file: BinaryIO, size_bytes: int) -> str:
    while file.tell() < size_bytes:
        number = _ebml_number(file, keep_marker=True)
        length = _ebml_number(file, keep_marker=False)
        if number is None or length is None:
            return ""  # unknown size (a live recording), or not EBML any more
        end = file.tell() + length
        if end > size_bytes:
            name = "Segment" if number == 0x18538067 else f"element {number:#x}"
            return _cut(name, end, size_bytes)
        file.seek(end)
    return ""


def _ebml_number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """Reads one EBML variable-size number; None at the end, on bad bytes, and for "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    if len(rest) != extra:
        return None
    number = int.from_bytes(first + rest, "big")
    if keep_marker:
        return number
    number &= (1 << 7 * (extra + 1)) - 1
    return None if number == (1 << 7 * (extra + 1)) - 1 else number


def _cut(name: str, end: int, size_bytes: int) -> str:
    return f"'{name}' should end at byte {end}, the file ends at byte {size_bytes}"
