"""The layouts that predictions are written in: what lies where, and what the JSON says."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from fcache.config import PredictFormat
from fcache.manifest import Category

_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal predictions are equal zips


class Record(Protocol):
    """What was written of a video, frame by frame."""

    @property
    def video_id(self) -> str:
        """The video."""

    def lines(self) -> Iterator[bytes]:
        """Yields the JSON of each frame."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A layout.

    Attributes:
        name: As ``format=`` calls it.
        is_panoptic: Whether a PNG holds segment ids; else category ids.
        is_linked: Whether a segment is a track through its video; else frames are single images.
        folder: Where PNGs lie, below the predictions' folder.
        json_name: Of the list of segments; None where there is none.
    """

    name: PredictFormat
    is_panoptic: bool
    is_linked: bool
    folder: str
    json_name: str | None

    def entry(
        self, video_id: str, frame_name: str, file_name: str, rows: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Returns what the record says of a frame.

        Args:
            video_id: Its video.
            frame_name: Its name.
            file_name: Of its PNG, below ``folder``.
            rows: Of its segments.
        """
        if not self.is_panoptic:
            return {"file_name": file_name}
        if self.is_linked:
            return {"file_name": PurePosixPath(file_name).name, "segments_info": rows}
        return {
            "image_id": _image_id(video_id, frame_name),
            "file_name": file_name,
            "segments_info": rows,
        }

    def png(self, video_id: str, file_name: str) -> str:
        """Returns where the PNG of an entry lies, below the predictions' folder."""
        below = f"{video_id}/{file_name}" if self.is_panoptic and self.is_linked else file_name
        return (PurePosixPath(self.folder) / below).as_posix()

    def write_json(
        self, file: BinaryIO, records: Sequence[Record], categories: Sequence[Category]
    ) -> None:
        """Writes the list of segments, frame by frame out of the records."""
        file.write(b'{"annotations": [')
        for number, record in enumerate(records):
            if self.is_linked:
                opening = f'{{"video_id": {json.dumps(record.video_id)}, "annotations": ['
                file.write((",\n" * bool(number) + opening + "\n").encode())
                _write_joined(file, record.lines())
                file.write(b"]}")
            else:
                file.write(b",\n" if number else b"\n")
                _write_joined(file, record.lines())
        rows = [category.model_dump(mode="json") for category in categories]
        file.write(b'],\n"categories": ' + json.dumps(rows).encode() + b"}\n")


FORMATS: Mapping[str, Format] = {
    one.name: one
    for one in (
        Format(
            name="vipseg",
            is_panoptic=True,
            is_linked=True,
            folder="pan_pred",
            json_name="pred.json",
        ),
        Format(name="vspw", is_panoptic=False, is_linked=True, folder=".", json_name=None),
        Format(
            name="coco",
            is_panoptic=True,
            is_linked=False,
            folder="panoptic",
            json_name="panoptic.json",
        ),
    )
}


def write_zip(file: BinaryIO, root: Path, names: Iterator[str]) -> None:
    """Writes files below ``root`` into a zip, PNGs as they are."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, _EPOCH)
            is_packed = name.endswith(".png")
            info.compress_type = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16  # without it, unzipped files may not be read
            info.file_size = (root / name).stat().st_size
            with (root / name).open("rb") as source, archive.open(info, "w") as target:
                while part := source.read(1 << 20):
                    target.write(part)


def _write_joined(file: BinaryIO, lines: Iterator[bytes]) -> None:
    file.writelines(
        (b",\n" if number else b"") + line.rstrip(b"\n") for number, line in enumerate(lines)
    )


def _image_id(video_id: str, frame_name: str) -> int | str:
    """An image's number where it is called by it, as COCO's are; else its name; or VIDEO/FRAME."""
    if not is_image(video_id, frame_name):
        return f"{video_id}/{frame_name}"
    return int(frame_name) if frame_name.isdecimal() else frame_name


def is_image(video_id: str, frame_name: str) -> bool:
    """Says whether a frame is a single image: its video goes by its name."""
    return video_id.rpartition("/")[2] == frame_name
