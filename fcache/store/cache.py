"""Opening a cache: its views, their videos, and clips of stage outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fcache.errors import CacheError, CacheNotFoundError, nearest
from fcache.store.fallback import ZarrReader, is_plain
from fcache.store.files import read_attributes, sealed, write_whole
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import LAYOUT_VERSION, ArraySpec, Bucket, group_json
from fcache.store.reader import ArrayReader, OpenFiles, VerifyPolicy, Window
from fcache.store.records import Item


@dataclass(frozen=True, slots=True)
class VideoFrames:
    """The stored frames of one video, in order.

    Attributes:
        video_id: As the manifest calls it.
        item: The item that holds it: content and selection.
        rows: Row of each frame in its bucket's arrays.
        names: Frame names, which labels join by.
        source_index: Position of each frame in the source.
        pts_us: Time of each frame from the source's first, microseconds; None for image files.
    """

    video_id: str
    split: str | None
    item: Item
    rows: tuple[int, ...]
    names: tuple[str, ...]
    source_index: tuple[int, ...]
    pts_us: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def valid(self) -> tuple[int, int]:
        """Height and width of the canvas that the frame covers, pixels; the rest is padding."""
        return int(self.item.placement["crop_h"]), int(self.item.placement["crop_w"])


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames read together. Pass one as ``out=`` to read the next clip into the same memory.

    Attributes:
        stages: Per wanted stage ``[T, h, w, C]``; bfloat16 comes as its bits in uint16.
        pixels: ``[T, H, W, 3]`` uint8 canvas, zero outside ``valid``; None if not asked for.
        valid: Height and width of the canvas that the frame covers, pixels.
        logical_dtype: What the values of ``stages`` mean.
    """

    stages: tuple[npt.NDArray[np.generic], ...]
    pixels: npt.NDArray[np.uint8] | None
    valid: tuple[int, int]
    logical_dtype: str
    blocks: tuple[npt.NDArray[np.generic], ...]


class View:
    """One view of a cache: a backbone's stage outputs under one geometry."""

    def __init__(self, folder: Path, files: OpenFiles) -> None:
        self.folder = folder
        self.index = ViewIndex(folder)
        self.key = folder.name
        self._files = files
        self._readers: dict[tuple[str, str], ArrayReader | ZarrReader] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the values, as it entered the key."""
        return self.index.identity

    @cached_property
    def state(self) -> ViewState:
        """The bookkeeping as it was when first asked for."""
        return self.index.load()

    @cached_property
    def _by_video(self) -> dict[str, list[tuple[Item, str | None]]]:
        found: dict[str, list[tuple[Item, str | None]]] = {}
        for name in self.state.names:
            item = self.state.items[name.item]
            if self.state.is_complete(item, self.index.feature_array):
                found.setdefault(name.video_id, []).append((item, name.split))
        return found

    @property
    def videos(self) -> list[str]:
        """Ids of the videos that can be read whole, in the order they came."""
        return list(self._by_video)

    @cached_property
    def _frames_by_item(self) -> dict[str, npt.NDArray[np.int64]]:
        """Where each item's frames lie in the frames table, in order."""
        table = self.state.tables.frames
        if not len(table):
            return {}
        items = table["item"].combine_chunks().dictionary_encode()
        codes = np.asarray(items.indices)
        order = np.lexsort((np.asarray(table["index"]), codes))
        ends = np.searchsorted(codes[order], np.arange(len(items.dictionary) + 1))
        names = items.dictionary.to_pylist()
        return {name: order[ends[i] : ends[i + 1]] for i, name in enumerate(names)}

    def frames(self, video: str, *, item: str | None = None) -> VideoFrames:
        """Returns the stored frames of a video.

        Args:
            video: Its id.
            item: Which item, where the same video was cached under several selections.

        Raises:
            CacheNotFoundError: no complete video of that id.
            CacheError: several selections of it, and none chosen.
        """
        entries = self._by_video.get(video, [])
        entries = [entry for entry in entries if item is None or entry[0].item.startswith(item)]
        if not entries:
            raise CacheNotFoundError(
                f"view {self.key} holds no complete video '{video}'{nearest(video, self.videos)}.",
                run=f"fcache ls '{self.folder.parent}'",
            )
        if len({entry[0].item for entry in entries}) > 1:
            choices = "; ".join(f"{entry.item}: {dict(entry.selection)}" for entry, _ in entries)
            raise CacheError(
                f"video '{video}' is cached under several selections; pass item=: {choices}."
            )
        chosen, split = entries[0]
        rows = self.state.tables.frames.take(self._frames_by_item[chosen.item]).to_pydict()
        return VideoFrames(
            video_id=video,
            split=split,
            item=chosen,
            rows=tuple(rows["row"]),
            names=tuple(rows["frame_name"]),
            source_index=tuple(rows["source_index"]),
            pts_us=tuple(rows["pts_us"]),
        )

    def read(
        self,
        video: str | VideoFrames,
        frames: Iterable[int] | None = None,
        *,
        stages: Sequence[int] | None = None,
        window: tuple[int, int, int, int] | None = None,
        pixels: bool = True,
        out: Clip | None = None,
        verify: VerifyPolicy = "first",
    ) -> Clip:
        """Reads frames of one video.

        Args:
            video: Its id, or what ``frames`` returned for it (saves the look-up).
            frames: Positions among its stored frames; all of them by default.
            stages: Which stage outputs, 0 to 3; all by default.
            window: (y, x, height, width) on the coarsest stage's token grid; finer stages and
                pixels follow. The whole canvas by default.
            pixels: Whether to read the canvas too.
            out: A clip of the same shape, whose memory is filled and returned.
            verify: Check checksums at the ``first`` read of a chunk in this process, ``always``,
                or ``never``.

        Raises:
            CacheNotFoundError: no such video.
            CacheCorruptError: stored bytes are not what was committed.
            IndexError, ValueError: frames, stages, window or ``out`` do not fit.
        """
        held = self.frames(video) if isinstance(video, str) else video
        rows = [held.rows[frame] for frame in (range(len(held)) if frames is None else frames)]
        wanted = tuple(range(self.index.layout.num_stages) if stages is None else stages)
        bucket = held.item.bucket
        parts = self._plan(bucket, wanted, window, pixels)
        if out is None:
            blocks = tuple(_allocate(len(rows), spec, pos, cut) for spec, pos, cut in parts)
        else:
            blocks = out.blocks
            _check_out(blocks, len(rows), parts)
        for (spec, positions, cut), block in zip(parts, blocks, strict=True):
            reader = self._reader(bucket, spec)
            reader.read(self.state.shards, rows, positions, block, verify, cut)
        return self._clip(blocks, len(wanted), held.valid, pixels)

    def _plan(
        self,
        bucket: Bucket,
        stages: tuple[int, ...],
        window: tuple[int, int, int, int] | None,
        pixels: bool,
    ) -> list[tuple[ArraySpec, tuple[int, ...], Window | None]]:
        """Which arrays are read, which chunks of a row, and which part of each chunk."""
        layout = self.index.layout
        if not stages or not set(stages) <= set(range(layout.num_stages)):
            raise ValueError(f"stages={stages}: expected some of 0..{layout.num_stages - 1}")
        specs = {spec.name: spec for spec in layout.arrays(bucket)}
        coarsest = layout.strides[-1]
        if window is not None:
            _check_window(window, layout.grid(bucket, layout.num_stages - 1))

        def cut(stride: int) -> Window | None:
            if window is None:
                return None
            return Window(*(side * coarsest // stride for side in window))

        if layout.plain:
            features = [(specs["tokens"], stages, cut(coarsest))]
        else:
            features = [(specs[f"stage{s}"], (0,), cut(layout.strides[s])) for s in stages]
        return [*features, (specs["pixels"], (0,), cut(1))] if pixels else features

    def _reader(self, bucket: Bucket, spec: ArraySpec) -> ArrayReader | ZarrReader:
        key = (bucket.name, spec.name)
        reader = self._readers.get(key)
        if reader is None:
            if is_plain(self.folder, bucket, spec):
                reader = ArrayReader(self.folder, bucket, spec, self._files)
            else:
                reader = ZarrReader(self.folder, bucket, spec)
            # Two threads may both get here; either reader serves.
            self._readers[key] = reader
        return reader

    def _clip(
        self,
        blocks: tuple[npt.NDArray[np.generic], ...],
        num_stages: int,
        valid: tuple[int, int],
        pixels: bool,
    ) -> Clip:
        if self.index.layout.plain:
            stages = tuple(blocks[0][:, stage] for stage in range(num_stages))
        else:
            stages = tuple(block[:, 0] for block in blocks[:num_stages])
        canvas = blocks[-1][:, 0].view(np.uint8) if pixels else None
        return Clip(stages, canvas, valid, self.index.layout.dtype, blocks)


class StoreCache:
    """A cache on disk: one or more views."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path = path
        _check_root(path)
        self._files = OpenFiles()
        self.views = tuple(
            View(folder, self._files)
            for folder in sorted(path.iterdir())
            if folder.name.startswith(prefix) and (folder / "index").is_dir()
        )
        if prefix and not self.views:
            raise CacheNotFoundError(
                f"'{path}' has no view whose key starts with '{prefix}'.", run=f"fcache ls '{path}'"
            )

    def view(self, prefix: str = "") -> View:
        """Returns the view whose key starts with ``prefix``; without one, the only view.

        Raises:
            CacheNotFoundError: none fits.
            CacheError: several fit; they are listed.
        """
        fits = [view for view in self.views if view.key.startswith(prefix)]
        if not fits:
            raise CacheNotFoundError(
                f"'{self.path}' has no view '{prefix}'.", run=f"fcache ls '{self.path}'"
            )
        if len(fits) > 1:
            keys = ", ".join(view.key for view in fits)
            raise CacheError(
                f"'{self.path}' has {len(fits)} views: {keys}. Choose one by "
                f"'{self.path}@{fits[0].key[:6]}'.",
                run=f"fcache ls '{self.path}'",
            )
        return fits[0]

    @property
    def videos(self) -> list[str]:
        """Ids of the videos of the only view."""
        return self.view().videos

    def read(self, video: str, frames: Iterable[int] | None = None, **options: Any) -> Clip:  # noqa: ANN401 - View.read's own
        """Reads frames of one video of the only view; see ``View.read``."""
        return self.view().read(video, frames, **options)


def split_key(path: str) -> tuple[Path, str]:
    """Divides ``PATH@KEYPREFIX``; an existing path may hold an ``@`` of its own."""
    whole = Path(path)
    if whole.exists() or "@" not in whole.name:
        return whole, ""
    before, _, prefix = path.rpartition("@")
    return Path(before), prefix


def create_root(path: Path) -> None:
    """Makes an empty cache where there is none.

    Raises:
        CacheError: the path holds something else, or cannot be written.
    """
    if (path / "zarr.json").exists():
        _check_root(path)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CacheError(
            f"'{path}' holds other files and is no cache; expected an empty or a new folder."
        )
    write_whole(path / "zarr.json", group_json({"fcache": sealed({"cache": LAYOUT_VERSION})}))


def _check_root(path: Path) -> None:
    """Checks that a path is a cache this version can read.

    Raises:
        CacheNotFoundError: it is not there, or no cache.
        CacheError: it is of a newer layout.
    """
    marker = path / "zarr.json"
    if not path.is_dir():
        raise CacheNotFoundError(f"'{path}' does not exist; expected the folder of a cache.")
    try:
        content = read_attributes(marker)
    except FileNotFoundError:
        raise CacheNotFoundError(
            f"'{path}' is no cache: it has no zarr.json of fcache's. A cache is what "
            "'fcache extract SRC --cache PATH' makes."
        ) from None
    if content["cache"] > LAYOUT_VERSION:
        raise CacheError(
            f"'{path}' has layout {content['cache']}; this fcache reads up to {LAYOUT_VERSION}. "
            "Update fcache."
        )


def _check_window(window: tuple[int, int, int, int], grid: tuple[int, int]) -> None:
    y, x, height, width = window
    inside = min(y, x) >= 0 and y + height <= grid[0] and x + width <= grid[1]
    if not inside or height < 1 or width < 1:
        raise ValueError(
            f"window={window} (y, x, height, width) leaves the token grid of {grid[0]} x {grid[1]}"
        )


def _shape(
    num_frames: int, spec: ArraySpec, positions: tuple[int, ...], cut: Window | None
) -> tuple[int, ...]:
    sides = spec.chunk_shape[:2] if cut is None else (cut.height, cut.width)
    return (num_frames, len(positions), *sides, spec.chunk_shape[2])


def _allocate(
    num_frames: int, spec: ArraySpec, positions: tuple[int, ...], cut: Window | None
) -> npt.NDArray[np.generic]:
    return np.empty(_shape(num_frames, spec, positions, cut), spec.dtype)


def _check_out(
    blocks: tuple[npt.NDArray[np.generic], ...],
    num_frames: int,
    parts: list[tuple[ArraySpec, tuple[int, ...], Window | None]],
) -> None:
    expected = [(_shape(num_frames, *part), part[0].dtype) for part in parts]
    got = [(block.shape, str(block.dtype)) for block in blocks]
    if got != expected:
        raise ValueError(f"out= holds {got}, this read fills {expected}")
