"""The folder of one head's predictions: written video by video, resumed at the one that lacks.

``OUT/.predict/about.json`` says what they are made from. A video's PNGs are written under another
name and renamed; then its record, ``OUT/.predict/records/VIDEO.jsonl`` with a line for each frame:
a video is there when its record is. The lists of segments are put together from records, so that
they always say what the PNGs hold. Whoever scores the folder finds nothing else in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcache.errors import ConfigError
from fcache.manifest import Category
from fcache.predict.formats import Format, is_image, write_zip
from fcache.store.files import TMP_SUFFIX, make_folder, published, write_whole
from fcache.store.identity import differences
from fcache.store.locks import held_alone

ABOUT, RECORDS, ZIP = ".predict/about.json", ".predict/records", "submission.zip"
RECORD_SUFFIX = ".jsonl"
PROVENANCE = "provenance"  # what may differ between predictions that go on


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """What was written of a video."""

    video_id: str
    path: Path

    def lines(self) -> Iterator[bytes]:
        """Yields the JSON of each frame."""
        with self.path.open("rb") as file:
            yield from file

    @property
    def num_frames(self) -> int:
        """T."""
        return sum(1 for _ in self.lines())


@dataclass(frozen=True, slots=True)
class VideoPlace:
    """Where a video's PNGs are written.

    Attributes:
        folder: Of the video's own PNGs; of a single image, the PNG itself.
        names: Of each frame's PNG, below the folder of the format.
    """

    folder: Path
    names: tuple[str, ...]
    is_image: bool

    def png(self, position: int) -> Path:
        """The path of a frame's PNG."""
        return self.folder if self.is_image else self.folder / Path(self.names[position]).name


class PredictFolder:
    """Predictions of one head, made or found.

    Args:
        path: Where; it need not exist.
        format: The layout.
    """

    def __init__(self, path: Path, format: Format) -> None:  # noqa: A002 - the field's word
        self.path = path
        self.format = format
        self.maps = path / format.folder

    def held(self) -> AbstractContextManager[None]:
        """Keeps other processes out while it is written.

        Raises:
            ConfigError: one is in.
        """
        refusal = f"another process predicts into '{self.path}'; expected a folder of its own."
        return held_alone(self.path, refusal)

    def check(self, facts: Mapping[str, Any]) -> None:
        """Accepts an empty folder, or predictions made from the same.

        Args:
            facts: What decides every map, in JSON's types; beside it, ``provenance``.

        Raises:
            ConfigError: other predictions or files lie there; every difference is shown.
        """
        path = self.path / ABOUT
        if path.exists():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"'{path}' cannot be read: {error}.") from None
            sides = [{k: v for k, v in side.items() if k != PROVENANCE} for side in (before, facts)]
            misfits = [f"{one.field} is {one.ours} there and {one.theirs} here"
                       for one in differences(*sides)]  # fmt: skip
            if misfits:
                more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
                raise ConfigError(
                    f"'{self.path}' holds other predictions: {'; '.join(misfits[:5])}{more}. "
                    "Expected the same to go on with them, or another --out."
                )
        elif self.path.exists() and any(p.name != ".lock" for p in self.path.iterdir()):
            raise ConfigError(
                f"'{self.path}' holds other files and no predictions; expected a new folder."
            )

    def begin(self, facts: Mapping[str, Any], video_ids: Sequence[str]) -> None:
        """Writes down what the predictions are made from, and sweeps what a killed job left.

        Args:
            facts: Those that ``check`` accepted.
            video_ids: Of the videos to come.
        """
        write_whole(self.path / ABOUT, (json.dumps(dict(facts), indent=2) + "\n").encode())
        roots = (self.path, self.maps, self.path / RECORDS)
        parents = {(root / video_id).parent for root in roots for video_id in video_ids}
        for parent in parents.union(roots):
            for left in parent.glob(f".*{TMP_SUFFIX}"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def is_done(self, video_id: str) -> bool:
        """Whether a video was written."""
        return self._record(video_id).exists()

    @contextmanager
    def video(self, video_id: str, frame_names: Sequence[str]) -> Iterator[VideoPlace]:
        """Yields where to write a video's PNGs; they are seen whole, or not at all.

        Raises:
            NoSpaceError: the disk is full; nothing of the video is left behind.
        """
        single = not self.format.is_linked and len(frame_names) == 1
        if single and is_image(video_id, frame_names[0]):
            name = f"{frame_names[0]}.png"
            with published(self.maps / name) as partial:
                yield VideoPlace(partial, (name,), is_image=True)
            return
        names = tuple(f"{video_id}/{frame}.png" for frame in frame_names)
        with published(self.maps / video_id) as partial:
            partial.mkdir()
            yield VideoPlace(partial, names, is_image=False)

    def record(self, video_id: str) -> AbstractContextManager[Path]:
        """Yields where to write a video's record; with it, the video is there."""
        return published(self._record(video_id))

    def records(self) -> list[VideoRecord]:
        """Returns the records of all videos that are there, by video id."""
        root = self.path / RECORDS
        found = [
            VideoRecord(path.relative_to(root).as_posix().removesuffix(RECORD_SUFFIX), path)
            for path in root.rglob(f"[!.]*{RECORD_SUFFIX}")
        ]
        return sorted(found, key=lambda record: record.video_id)

    def finish(self, categories: Sequence[Category], *, zipped: bool) -> None:
        """Writes the list of segments, and the zip where it is wanted, of all videos there.

        Raises:
            NoSpaceError: the disk is full; the videos stay.
        """
        records = self.records()
        make_folder(self.maps)
        name = self.format.json_name
        if name is not None:
            with published(self.path / name) as partial, partial.open("wb") as file:
                self.format.write_json(file, records, categories)
        if zipped:
            names = self._zipped(records)
            with published(self.path / ZIP) as partial, partial.open("wb") as file:
                write_zip(file, self.path, names)

    def _zipped(self, records: Sequence[VideoRecord]) -> Iterator[str]:
        """The files of a submission, as the zip calls them."""
        if self.format.json_name is not None:
            yield self.format.json_name
        for record in records:
            for line in record.lines():
                yield self.format.png(record.video_id, json.loads(line)["file_name"])

    def _record(self, video_id: str) -> Path:
        return self.path / RECORDS / f"{video_id}{RECORD_SUFFIX}"
