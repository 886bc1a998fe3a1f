"""What a change of a view's stored type would do: which view it makes, of which frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fcache.config import Settings, StoredDtype, read_overrides, resolve
from fcache.errors import CacheError, ConfigError, FeatureError, NoSpaceError
from fcache.extract.calibrate import Calibration
from fcache.extract.copy_rows import CopyRows
from fcache.extract.disk import free_bytes
from fcache.store.cache import StoreCache, View
from fcache.store.identity import view_key
from fcache.store.index import ViewIndex
from fcache.store.inspect import commit_stats, summarise
from fcache.store.layout import Bucket, ViewLayout
from fcache.store.root import check_root, view_attributes
from fcache.store.writer import RANGES


class CopyConfig(Settings):
    """Everything ``fcache copy`` can be told by ``key=value``."""

    dtype: StoredDtype
    device: str = "auto"


@dataclass(slots=True)
class Sizes:
    """Frames and bytes of a copy; a frame that several videos share counts once.

    Attributes:
        before_bytes: What the copied frames take in the source.
        after_bytes: What they take in the copy.
        todo_frames: Frames to be written.
        todo_bytes: What these take.
    """

    before: ViewLayout
    after: ViewLayout
    num_frames: int = 0
    before_bytes: int = 0
    after_bytes: int = 0
    todo_frames: int = 0
    todo_bytes: int = 0

    def add(self, bucket: Bucket, num_frames: int, num_missing: int) -> None:
        """Counts the frames of an item."""
        frame_bytes = self.after.frame_bytes(bucket)
        self.num_frames += num_frames
        self.before_bytes += num_frames * self.before.frame_bytes(bucket)
        self.after_bytes += num_frames * frame_bytes
        self.todo_frames += num_missing
        self.todo_bytes += num_missing * frame_bytes


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a copy would do, and what is there.

    Attributes:
        source: The view that is read.
        cache: Folder of the cache the copy lies in.
        identity: The copy's; of int8 without a calibration, as long as none is known.
        calibration: The channel scales that an earlier copy into this cache has found.
        left_out: Number of videos that are not copied, by their state.
    """

    source: View
    cache: Path
    dtype: str
    identity: Mapping[str, Any]
    calibration: Calibration | None
    rows: CopyRows
    left_out: Mapping[str, int]
    sizes: Sizes
    free_bytes: int

    @property
    def key(self) -> str | None:
        """The copy's key; None before calibration."""
        if self.dtype == "int8" and self.calibration is None:
            return None
        return view_key(self.identity)

    def check_space(self) -> None:
        """Refuses a copy that cannot end well.

        Raises:
            NoSpaceError: the disk does not hold it.
        """
        sizes = self.sizes
        if sizes.todo_bytes > self.free_bytes:
            raise NoSpaceError(
                f"'{self.cache}' needs {sizes.todo_bytes / 1e9:,.2f} GB for {sizes.todo_frames:,} "
                f"frames, its disk has {self.free_bytes / 1e9:,.2f} GB free. Nothing was written."
            )


def read_settings(words: list[str]) -> CopyConfig:
    """Reads ``key=value`` settings.

    Raises:
        ConfigError: one is wrong, or the type is not said.
    """
    return resolve(CopyConfig, {}, read_overrides(words))


def choose_source(cache: StoreCache, dtype: str) -> View:
    """Returns the view of a cache that a copy reads.

    A cache may hold a view and what was copied of it: asked again for the same copy, the first is
    meant.

    Raises:
        CacheError: several views fit; they are listed.
    """
    keys = {view.key for view in cache.views}
    fits = [
        view
        for view in cache.views
        if view.identity["dtype"] != dtype or view.identity.get("derived_from") not in keys
    ]
    return fits[0] if len(fits) == 1 else cache.view()


def plan_copy(source: View, cache: Path, dtype: str) -> CopyPlan:
    """Returns what changing the stored type of a view would do; writes nothing.

    Raises:
        ConfigError: the view is of that type.
        CacheError: it holds nothing that can be copied, or the copy's place is no cache.
        FeatureError: float16 cannot hold its values.
    """
    _check_type(source, dtype)
    identity = {**source.identity, "dtype": dtype, "derived_from": source.key}
    identity.pop("calibration", None)
    held = _made_before(cache, identity)
    state = held.load() if held else None
    rows = CopyRows(source, state.items if state else {})
    if not rows.videos:
        raise CacheError(f"view {source.key} holds no complete video: there is nothing to copy.")
    _check_range(source, dtype)
    sizes = Sizes(source.index.layout, ViewLayout.of(identity))
    for item in rows.items:
        sizes.add(item.bucket, rows.num_own(item), rows.num_missing(item, state))
    row = summarise(source)
    return CopyPlan(
        source=source,
        cache=cache,
        dtype=dtype,
        identity=held.identity if held else identity,
        calibration=_calibration_of(held) if held else None,
        rows=rows,
        left_out={"partial": row.partial, "quarantined": row.quarantined},
        sizes=sizes,
        free_bytes=free_bytes(cache),
    )


def _check_type(source: View, dtype: str) -> None:
    if source.index.layout.dtype == dtype:
        others = ", ".join(name for name in get_args(StoredDtype) if name != dtype)
        raise ConfigError(
            f"view {source.key} is of {dtype}: nothing to convert. A copy changes the stored type; "
            f"expected dtype= to be one of: {others}."
        )


def _check_range(source: View, dtype: str) -> None:
    """Refuses values beyond float16 before anything is written, by what the commits told."""
    if dtype != "float16":
        return
    largest = np.array([told["largest"] for told in commit_stats(source)]).max(axis=0)
    for stage, value in enumerate(largest.tolist()):
        if value > RANGES[dtype]:
            raise FeatureError(
                f"view {source.key}, stage {stage}: the values reach {value:.4g}, float16 holds up "
                f"to {RANGES[dtype]:.4g}. Nothing was written; dtype=bfloat16 has the range."
            )


def _made_before(cache: Path, identity: Mapping[str, Any]) -> ViewIndex | None:
    """The oldest view of a cache that is such a copy, whatever its calibration."""
    if not (cache / "zarr.json").exists():
        return None
    check_root(cache)
    found: list[tuple[float, Path]] = []
    for path in cache.glob("*/zarr.json"):
        record = view_attributes(path.parent)
        known = {key: value for key, value in record["identity"].items() if key != "calibration"}
        if known == identity:
            found.append((record["provenance"]["created_s"], path.parent))
    return ViewIndex(min(found)[1]) if found else None


def _calibration_of(index: ViewIndex) -> Calibration | None:
    record = index.attributes.get("calibration")
    return Calibration.from_json(record) if record else None
