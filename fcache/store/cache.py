"""Opening a cache: its views, their videos, and clips of stage outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fcache.errors import CacheError, CacheNotFoundError, ConfigError, nearest
from fcache.store.clip import Allocate as Allocate, Clip as Clip, check_blocks, plan_cuts
from fcache.store.fallback import ZarrReader, is_plain
from fcache.store.frames import Catalogue, VideoFrames as VideoFrames
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import ArraySpec, Bucket, ViewLayout
from fcache.store.reader import ArrayReader, OpenFiles, VerifyPolicy
from fcache.store.root import check_root, create_root as create_root, split_key as split_key


class View:
    """One view of a cache: a backbone's stage outputs under one geometry."""

    def __init__(self, folder: Path, files: OpenFiles) -> None:
        self.folder = folder
        self.index = ViewIndex(folder)
        self.key = folder.name
        self._files = files
        self._catalogue: Catalogue | None = None
        self._readers: dict[tuple[str, str], ArrayReader | ZarrReader] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the values, as it entered the key."""
        return self.index.identity

    @property
    def layout(self) -> ViewLayout:
        """What it stores per frame."""
        return self.index.layout

    @cached_property
    def channel_scales(self) -> tuple[npt.NDArray[np.float32], ...]:
        """Of int8 values, the channel scales ``[C]`` of each stage; else nothing."""
        if not self.index.layout.compact:
            return ()
        scales = self.index.attributes["calibration"]["channel_scales"]
        return tuple(np.asarray(stage, np.float32) for stage in scales)

    @property
    def state(self) -> ViewState:
        """The bookkeeping as it was when first asked for."""
        return self.catalogue.state

    @property
    def catalogue(self) -> Catalogue:
        """The videos that can be read whole, as they were when first asked for."""
        # Without a lock: two threads may both load it, and a fork copies no lock that is held.
        if self._catalogue is None:
            self._catalogue = Catalogue(self.index.load(), self.index.feature_array)
        return self._catalogue

    @property
    def videos(self) -> list[str]:
        """Ids of the videos that can be read whole, in the order they came."""
        return self.catalogue.videos

    def frames(
        self, video: str, *, item: str | None = None, draw: int | None = None
    ) -> VideoFrames:
        """Returns the stored frames of a video.

        Args:
            video: Its id.
            item: Which item, where the same video was cached under several selections.
            draw: Which crop, where the view holds several of each video.

        Raises:
            CacheNotFoundError: no complete video of that id.
            CacheError: several selections or crops of it, and none chosen.
        """
        entries = [
            (held, split)
            for held, split in self.catalogue.items(video)
            if (item is None or held.item.startswith(item)) and draw in (None, held.draw)
        ]
        if not entries:
            what = f"crop {draw} of video" if draw is not None and item is None else "video"
            near = "" if video in self.videos else nearest(video, self.videos)
            raise CacheNotFoundError(
                f"view {self.key} holds no complete {what} '{video}'{near}.",
                run=f"fcache ls '{self.folder.parent}'",
            )
        if len(entries) > 1:
            draws = sorted({held.draw for held, _ in entries if held.draw is not None})
            if len(draws) == len(entries):
                raise CacheError(
                    f"video '{video}' is cached as {len(draws)} crops; expected draw= to say "
                    f"which: {', '.join(map(str, draws))}."
                )
            choices = "; ".join(
                f"{held.item}: selection {dict(held.selection)}" for held, _ in entries
            )
            raise CacheError(
                f"video '{video}' is cached {len(entries)} times; expected item= to say which: "
                f"{choices}."
            )
        return self.catalogue.frames(video, *entries[0])

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
            stages: Which stage outputs, 0 to 3; all by default, none for pixels alone.
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
        rows = _rows(held, frames)
        wanted = tuple(range(self.index.layout.num_stages) if stages is None else stages)
        cuts = plan_cuts(self.index.layout, held.item.bucket, wanted, window, pixels)
        if out is None:
            blocks = tuple(cut.allocate(len(rows)) for cut in cuts)
        else:
            blocks = out.blocks
            check_blocks(blocks, len(rows), cuts)
        for cut, block in zip(cuts, blocks, strict=True):
            reader = self._reader(held.item.bucket, cut.spec)
            reader.read(self.state.shards, rows, cut.positions, block, verify, cut.window)
        return self._clip(blocks, wanted, held.valid, pixels)

    def empty(
        self,
        bucket: Bucket,
        num_frames: int,
        *,
        stages: Sequence[int] | None = None,
        window: tuple[int, int, int, int] | None = None,
        pixels: bool = True,
        allocate: Allocate = np.empty,
    ) -> Clip:
        """Returns memory for frames of a canvas, which ``read`` fills as its ``out=``.

        Parts of it, from ``Clip.rows``, can be filled one by one.

        Args:
            bucket: The canvas.
            num_frames: How many.
            stages: As of ``read``; likewise ``window``, of which the place does not matter.
            window: Likewise.
            pixels: Likewise.
            allocate: Makes an array of a shape and a data type, in C order.

        Raises:
            ValueError: stages or window are outside.
        """
        wanted = tuple(range(self.index.layout.num_stages) if stages is None else stages)
        cuts = plan_cuts(self.index.layout, bucket, wanted, window, pixels)
        blocks = tuple(allocate(cut.shape(num_frames), cut.spec.dtype) for cut in cuts)
        return self._clip(blocks, wanted, (bucket.height, bucket.width), pixels)

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
        wanted: tuple[int, ...],
        valid: tuple[int, int],
        pixels: bool,
    ) -> Clip:
        layout = self.index.layout
        if layout.plain:
            by_stage = [block[:, k] for block in blocks for k in range(block.shape[1])]
        else:
            by_stage = [block[:, 0] for block in blocks]
        count = len(wanted)
        return Clip(
            stages=tuple(by_stage[:count]),
            pixels=blocks[-1][:, 0].view(np.uint8) if pixels else None,
            valid=valid,
            logical_dtype=layout.dtype,
            blocks=blocks,
            scales=tuple(by_stage[count : 2 * count]) if layout.compact else (),
            channel_scales=tuple(self.channel_scales[stage] for stage in wanted)
            if layout.compact
            else (),
        )


class StoreCache:
    """A cache on disk: one or more views."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path = path
        check_root(path)
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
            ConfigError: several fit; they are listed.
        """
        fits = [view for view in self.views if view.key.startswith(prefix)]
        if not fits:
            raise CacheNotFoundError(
                f"'{self.path}' has no view '{prefix}'.", run=f"fcache ls '{self.path}'"
            )
        if len(fits) > 1:
            keys = ", ".join(view.key for view in fits)
            raise ConfigError(
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


def _rows(held: VideoFrames, frames: Iterable[int] | None) -> list[int]:
    if frames is None:
        return list(held.rows)
    wanted = list(frames)
    outside = [frame for frame in wanted if not 0 <= frame < len(held)]
    if outside:
        raise IndexError(
            f"frame {outside[0]} of video '{held.video_id}': expected 0..{len(held) - 1}"
        )
    return [held.rows[frame] for frame in wanted]
