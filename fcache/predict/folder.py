"""The folder of one head's predictions: written video by video, resumed at the one that lacks.

``OUT/.predict/about.json`` says what they are made from, of each video which content and frames. A
video's PNGs are written under another name and renamed; then its record, which is
``OUT/.predict/records/VIDEO.jsonl`` with a line for each frame: a video is there when its record
is. The lists of segments are put together from records, so that they always say what the PNGs hold.
Whoever scores the folder finds nothing else in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fcache.errors import ConfigError
from fcache.manifest import Category
from fcache.predict.formats import Format, is_image, write_zip
from fcache.store.files import TMP_SUFFIX, make_folder, published, write_whole
from fcache.store.identity import differences
from fcache.store.locks import held_alone

ABOUT, RECORDS, ZIP = ".predict/about.json", ".predict/records", "submission.zip"
RECORD_SUFFIX = ".jsonl"
PROVENANCE = "provenance"  # of the facts: what may differ between predictions that go on
VIDEOS = "videos"  # of the facts: what decides each video's maps, by id
PLACE = "maps"  # of a video's facts: the folder or PNG of its maps


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
            facts: What decides every map, in JSON's types; beside it, ``PROVENANCE``, and of the
                videos to come ``VIDEOS``, each with its ``PLACE``.

        Raises:
            ConfigError: other predictions or files lie there, or maps of other content or frames
                of a video: the differences are shown. Or maps of two videos would lie in one place.
        """
        before = self._about()
        if before is None:
            if self.path.exists() and any(path.name != ".lock" for path in self.path.iterdir()):
                raise ConfigError(
                    f"'{self.path}' holds other files and no predictions; expected a new folder."
                )
            _check_places(facts[VIDEOS])
            return
        again = [video_id for video_id in facts[VIDEOS] if self.is_done(video_id)]
        sides = []
        for side in (before, facts):
            videos = side.get(VIDEOS, {})
            sides.append(
                {**side, PROVENANCE: None, VIDEOS: {one: videos.get(one) for one in again}}
            )
        misfits = [f"{one.field} is {one.ours} there and {one.theirs} here"
                   for one in differences(*sides)]  # fmt: skip
        if misfits:
            more = f"; and {len(misfits) - 5} more" if len(misfits) > 5 else ""
            raise ConfigError(
                f"'{self.path}' holds other predictions: {'; '.join(misfits[:5])}{more}. "
                "Expected the same to go on with them, or another --out."
            )
        _check_places({**self._written(before), **facts[VIDEOS]})

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Writes down what the predictions are made from, and sweeps what a killed job left.

        Args:
            facts: Those that ``check`` accepted.
        """
        videos = {**self._written(self._about() or {}), **facts[VIDEOS]}
        about = json.dumps({**facts, VIDEOS: videos}, indent=2) + "\n"
        write_whole(self.path / ABOUT, about.encode())
        roots = (self.path, self.maps, self.path / RECORDS)
        parents = {(root / video_id).parent for root in roots for video_id in facts[VIDEOS]}
        for parent in parents.union(roots):
            for left in parent.glob(f".*{TMP_SUFFIX}"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def is_done(self, video_id: str) -> bool:
        """Whether a video was written."""
        return self._record(video_id).exists()

    def place(self, video_id: str, frame_names: Sequence[str]) -> str:
        """Returns where a video's maps go: a folder, or the PNG of a single image."""
        is_single = self._is_single(video_id, frame_names)
        below = f"{frame_names[0]}.png" if is_single else video_id
        return (PurePosixPath(self.format.folder) / below).as_posix()

    @contextmanager
    def video(self, video_id: str, frame_names: Sequence[str]) -> Iterator[VideoPlace]:
        """Yields where to write a video's PNGs; they are seen whole, or not at all.

        Raises:
            NoSpaceError: the disk is full; nothing of the video is left behind.
        """
        with published(self.path / self.place(video_id, frame_names)) as partial:
            if self._is_single(video_id, frame_names):
                yield VideoPlace(partial, (f"{frame_names[0]}.png",), is_image=True)
            else:
                partial.mkdir()
                names = tuple(f"{video_id}/{frame}.png" for frame in frame_names)
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
        """Writes the list of segments of all videos there; the zip where it is wanted or there.

        Raises:
            NoSpaceError: the disk is full; the videos stay.
        """
        records = self.records()
        make_folder(self.maps)
        name = self.format.json_name
        if name is not None:
            with published(self.path / name) as partial, partial.open("wb") as file:
                self.format.write_json(file, records, categories)
        if zipped or (self.path / ZIP).exists():  # no zip stays behind the maps
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

    def _is_single(self, video_id: str, frame_names: Sequence[str]) -> bool:
        is_alone = not self.format.is_linked and len(frame_names) == 1
        return is_alone and is_image(video_id, frame_names[0])

    def _about(self) -> dict[str, Any] | None:
        path = self.path / ABOUT
        if not path.exists():
            return None
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"'{path}' cannot be read: {error}.") from None
        return about

    def _written(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of the videos that are there."""
        videos = about.get(VIDEOS, {})
        return {video_id: videos[video_id] for video_id in videos if self.is_done(video_id)}


def _check_places(videos: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses maps in one place, or in a folder that another video's maps replace as a whole."""
    owners: dict[str, str] = {}
    for video_id, facts in videos.items():
        owner = owners.setdefault(facts[PLACE], video_id)
        if owner != video_id:
            raise ConfigError(
                f"maps of '{owner}' and '{video_id}' would both be '{facts[PLACE]}'; expected "
                "split= or videos= to choose, or another --out for one of them."
            )
    for place, video_id in owners.items():
        for above in map(str, PurePosixPath(place).parents):
            if above in owners:
                raise ConfigError(
                    f"maps of '{video_id}' would lie in '{above}', which is replaced with the maps "
                    f"of '{owners[above]}'; expected split= or videos= to choose, or another --out "
                    "for one of them."
                )
