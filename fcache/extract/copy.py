"""Copying a view into another stored type, row group by row group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fcache.backbones.build import versions
from fcache.errors import FeatureError, InterruptedJobError
from fcache.extract.behind import Behind
from fcache.extract.convert import Converter, calibrate_stored
from fcache.extract.copy_plan import CopyPlan
from fcache.extract.copy_rows import CopiedFrame, Group
from fcache.extract.job import STALE_TMP_S, WAIT_S
from fcache.extract.precision import merge_errors
from fcache.extract.produced import Produced
from fcache.extract.producer import choose_device
from fcache.extract.told import stored_errors
from fcache.interrupt import StopRequest, interruptible
from fcache.manifest import Manifest
from fcache.report import Report
from fcache.store.cache import StoreCache, View, create_root
from fcache.store.claims import Claims
from fcache.store.clip import Clip
from fcache.store.index import ViewIndex
from fcache.store.inspect import commit_stats, origins
from fcache.store.writer import RowGroup

BATCH_BYTES = 1 << 26  # read at once; a few times as much is held, whatever the size of a shard


@dataclass(slots=True)
class CopySummary:
    """What a copy did.

    Attributes:
        key: The copy's key.
        num_frames: Frames this run wrote.
        errors: For each stage, what the whole copy differs by from its source; see
            ``told.stored_errors``.
    """

    key: str
    num_frames: int
    size_bytes: int
    seconds: float
    errors: list[dict[str, float]]


def run_copy(plan: CopyPlan, *, device: str, report: Report) -> CopySummary:
    """Writes what a plan says is missing of a copy.

    Every commit is atomic: after a crash, a kill or Ctrl-C the same command goes on.

    Args:
        plan: What to copy.
        device: Where values are converted: ``auto``, ``cpu`` or ``cuda``.
        report: Told of what happens, from any thread.

    Raises:
        NoSpaceError: the disk or the quota does not hold it.
        InterruptedJobError: Ctrl-C; what is committed stays.
        CacheCorruptError: stored bytes of the source are not what was committed.
        FeatureError: the type cannot hold a value.
    """
    where = choose_device(device)
    plan.check_space()
    began_s = time.monotonic()
    create_root(plan.cache)
    plan = _calibrated(plan, where, report)
    index = _prepare(plan)
    job = _Copying(plan, index, where, report)
    with index.folding(), interruptible(lambda: report({"event": "stopping"})) as stop:
        job.work(stop)
    seconds = time.monotonic() - began_s
    copy = StoreCache(plan.cache, index.folder.name).view()
    errors = stored_errors(copy, commit_stats(copy))
    return CopySummary(copy.key, job.num_frames, job.size_bytes, seconds, errors)


def _calibrated(plan: CopyPlan, device: torch.device, report: Report) -> CopyPlan:
    if plan.key is not None:
        return plan
    calibration = calibrate_stored(
        plan.source,
        device,
        lambda done, total: report({"event": "calibrated", "frames": done, "of": total}),
    )
    identity = {**plan.identity, "calibration": calibration.sha256}
    return replace(plan, identity=identity, calibration=calibration)


def _prepare(plan: CopyPlan) -> ViewIndex:
    """Makes the view where there is none, and gives rows to what has none."""
    source = plan.source
    before = source.index.attributes["provenance"]
    made = {
        "created_s": round(time.time(), 3),
        "copied_from": {
            "view": source.key,
            "dtype": source.index.layout.dtype,
            "made_by": origins(source),
        },
    }
    if "recipe" in before:
        made["recipe"] = {**before["recipe"], "dtype": plan.dtype}
    scales = plan.calibration.to_json() if plan.calibration else None
    index = ViewIndex.create(plan.cache, plan.identity, made, scales)
    held = index.manifests()
    manifests = source.index.manifests()
    # The last is the one that counts, also where it is an earlier one that came back.
    for content in [one for one in manifests if one not in held] + manifests[-1:]:
        index.embed(content, Manifest.model_validate(content).sha256)
    index.sweep(STALE_TMP_S, time.time())
    plan.rows.reserve(index)
    for outcome in plan.rows.unended(index.load()):
        index.end(outcome)
    return index


class _Copying:
    """The row groups of a copy at work."""

    def __init__(
        self, plan: CopyPlan, index: ViewIndex, device: torch.device, report: Report
    ) -> None:
        self.num_frames = 0
        self.size_bytes = 0
        self._source: View = plan.source
        self._rows = plan.rows
        self._todo_frames = plan.sizes.todo_frames
        self._index = index
        self._converter = Converter(plan.source, plan.dtype, plan.calibration, device)
        used = versions(device)
        self._provenance = {"torch": used["torch"], "device": used["device"]}
        self._report = report

    def work(self, stop: StopRequest) -> None:
        """Goes on until nothing is missing, waiting for row groups that another copy writes."""
        self._report({"event": "start", "frames": self._todo_frames})
        told = 0
        while True:
            state = self._index.load()
            busy = self._write(self._rows.missing(state), state.generation, stop)
            if stop.asked or not busy:
                break
            if busy != told:
                self._report({"event": "waiting", "shards": busy})
            told = busy
            time.sleep(WAIT_S)
        if stop.asked and self._rows.missing(self._index.load()):
            raise InterruptedJobError(
                f"stopped after {self.num_frames:,} frames; every committed shard is kept. The "
                "same command goes on from there."
            )

    def _write(self, groups: Sequence[Group], generation: int, stop: StopRequest) -> int:
        """Writes row groups; returns how many another copy holds."""
        busy = 0
        with Claims(self._index.index) as claims, Behind() as behind:
            for group in groups:
                if stop.asked:
                    break
                if not claims.take(group.bucket.name, group.shard):
                    busy += 1
                elif self._index.is_committed(group.bucket, group.shard, generation):
                    claims.release(group.bucket.name, group.shard)
                else:
                    self._write_group(group, claims, behind)
            behind.wait()
        return busy

    def _write_group(self, group: Group, claims: Claims, behind: Behind) -> None:
        written = behind.keep(RowGroup(self._index, group.bucket, group.shard))
        frames = self._rows.frames(group)
        spent = dict.fromkeys(("read", "compute", "write"), 0.0)
        errors: list[npt.NDArray[np.float64]] = []
        size = max(1, BATCH_BYTES // self._source.index.layout.frame_bytes(group.bucket))
        for first in range(0, len(frames), size):
            batch = frames[first : first + size]
            with _timed(spent, "read"):
                rows = tuple(one.source_row for one in batch)
                clip = self._source.read(replace(batch[0].video, rows=rows))
            with _timed(spent, "compute"):
                produced = self._convert(clip, batch)
            if produced.errors is not None:
                errors.append(produced.errors)
            with _timed(spent, "write"):
                behind.submit(partial(_put, written, batch, produced, clip))
        stats = {
            "seconds": {name: round(seconds, 4) for name, seconds in spent.items()},
            "errors": merge_errors(errors).tolist(),  # precision.ERROR_COLUMNS
        }
        ended = self._rows.ended(frames)
        behind.submit(partial(self._commit, written, ended, stats, claims, behind))

    def _convert(self, clip: Clip, batch: Sequence[CopiedFrame]) -> Produced:
        try:
            return self._converter.convert(clip, [one.video.valid for one in batch])
        except FeatureError as error:
            videos = ", ".join(dict.fromkeys(f"'{one.video.video_id}'" for one in batch))
            raise FeatureError(f"video {videos}: {error.message}") from None

    def _commit(
        self,
        written: RowGroup,
        ended: Mapping[str, int],
        stats: Mapping[str, Any],
        claims: Claims,
        behind: Behind,
    ) -> None:
        about = {**self._provenance, "num_frames": len(written.frames)}
        part = written.commit(ended, about, stats)
        behind.done(written)
        claims.release(written.bucket.name, written.shard)
        self.num_frames += len(part.frames)
        self.size_bytes += part.size_bytes
        self._report({"event": "commit", "frames": len(part.frames), "bytes": part.size_bytes})


def _put(written: RowGroup, batch: Sequence[CopiedFrame], produced: Produced, clip: Clip) -> None:
    assert clip.pixels is not None
    for place, one in enumerate(batch):
        arrays = {name: [stage[place] for stage in of] for name, of in produced.arrays.items()}
        arrays["pixels"] = [clip.pixels[place]]
        try:
            written.put(one.record, arrays, produced.largest[place])
        except FeatureError as error:
            raise FeatureError(f"video '{one.video.video_id}', {error.message}") from None


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    spent[name] += time.monotonic() - began_s
