"""The public door: ``fcache.open_cache``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcache.store.cache import StoreCache, split_key

if TYPE_CHECKING:
    from fcache.data.dataset import ClipDataset


class Cache(StoreCache):
    """A cache on disk, and a torch data set over it."""

    def torch_dataset(
        self,
        *,
        clip_frames: int = 1,
        stages: tuple[int, ...] = (0, 1, 2, 3),
        split: str | None = None,
        labels: str | Path | None = None,
        selection: Mapping[str, Any] | None = None,
        draw: int | None = None,
    ) -> ClipDataset:
        """Returns a map-style data set of clips for a head of one's own.

        Each sample is a dict: ``stages`` (a tensor ``[T, h, w, C]`` each: float16 or float32 as
        stored, bfloat16 and int8 as float32), ``pixels`` ``[T, H, W, 3]`` uint8, ``valid``
        (height, width) in pixels, ``video``, ``frames``, in a view of crops ``draw``, and with
        labels ``label`` ``[T, H, W]`` int64, 255 where there is none. In a view of crops, every
        crop of a video gives clips; none holds frames of two.

        Args:
            clip_frames: Consecutive frames of a sample.
            stages: Which stage outputs.
            split: Only the videos of a split.
            labels: Semantic labels: a folder of masks, or a manifest; joined by (video id, frame
                name) and brought to the canvas.
            selection: Only what was extracted under this frame selection, such as
                ``{"fps": 5.0}``; needed where a video is cached under several.
            draw: Only this crop of each video, in a view of crops.

        Raises:
            ConfigError: no video of that split, no such crop, or labels that do not join.
        """
        from fcache.data.dataset import ClipDataset

        return ClipDataset(
            self.view(),
            clip_frames=clip_frames,
            stages=stages,
            split=split,
            labels=labels,
            selection=selection,
            draw=draw,
        )


def open_cache(path: str | Path) -> Cache:
    """Opens a cache for reading.

    Args:
        path: Its folder, or ``FOLDER@KEYPREFIX`` for one of several views.

    Raises:
        CacheNotFoundError: there is no cache, or no such view.
        CacheCorruptError: its bookkeeping fails a checksum.
    """
    folder, prefix = split_key(str(path))
    return Cache(folder, prefix)
