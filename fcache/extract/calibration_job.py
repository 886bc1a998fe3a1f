"""Finding the channel scales of a compact view by a small job on the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fcache.config import Selection
from fcache.errors import ConfigError, FcacheError, SourceError
from fcache.extract.calibrate import (
    Calibration,
    Maxima,
    choose_frames,
    merge_maxima,
)
from fcache.extract.cluster import open_executor
from fcache.extract.drawn import placement_of
from fcache.extract.plan import PlannedSource
from fcache.extract.producer import BackboneProducer, ProducerSettings
from fcache.extract.request import ExtractRequest
from fcache.extract.survey import make_plan
from fcache.report import Report
from fcache.sources.decode import decode
from fcache.sources.geometry import draw

BUNDLE = 16  # frames of one task: a worker's network is loaded once, tasks cost little


@dataclass(frozen=True, slots=True)
class _Look:
    """Frames of one source that a worker looks at."""

    planned: PlannedSource
    indexes: tuple[int, ...]
    selection: Selection


def calibrate(
    request: ExtractRequest,
    cache: Path,
    *,
    scheduler: str,
    report: Report = lambda event: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Calibration, ExtractRequest]:
    """Computes the channel scales of a request on its workers.

    Args:
        request: What is to be extracted, its identity without a calibration.
        cache: Where it will lie; nothing is written.
        scheduler: Where workers are; see ``open_executor``.
        report: Told of what happens to workers.
        progress: Told how many frames were looked at, of how many.

    Returns:
        The scales, and the request with what was learnt of its sources.

    Raises:
        ConfigError: no source can be read.
        FcacheError: the network cannot be run.
    """
    plan = make_plan(cache, request.identity, request.sources, request.config)
    # Of several crops the first, however many there are: they are no part of the view's identity.
    firsts = list({one.source.video_id: one for one in reversed(plan.sources)}.values())[::-1]
    chosen = choose_frames(
        [(one.sha256, one.source.split, one.num_frames) for one in firsts],
        request.config.calibration_frames,
    )
    looks = [_Look(firsts[at], frames, request.config.selection) for at, frames in chosen]
    if not looks:
        broken = "".join(f" '{one.source.video_id}': {one.reason}" for one in plan.rejected[:1])
        raise ConfigError(
            "dtype=int8 needs frames to calibrate on; expected a readable video of split 'train', "
            f"or of any where there is no such split.{broken}"
        )
    total = sum(len(look.indexes) for look in looks)
    config = request.config
    settings = ProducerSettings(
        backbone=config.backbone,
        dtype="float32",
        device=config.device,
        compile=config.compile,
        weights_sha256=request.identity["backbone"]["weights_sha256"],
    )
    parts: list[Maxima] = []
    with open_executor(
        scheduler, workers=config.workers, device=config.device, retries=config.retries
    ) as executor:
        works = [(settings, bundle) for bundle in _bundles(looks)]
        for part in executor.map(_absmax, works, report):
            if isinstance(part, Exception):
                raise part
            parts += [part] if part.num_frames else []
            progress(sum(one.num_frames for one in parts), total)
    if not parts:
        raise ConfigError("dtype=int8: none of the frames chosen to calibrate on can be decoded.")
    hashes = {one.source.video_id: one.sha256 for one in firsts}
    sources = tuple(
        replace(known, sha256=hashes.get(known.source.video_id, known.sha256))
        for known in request.sources
    )
    return Calibration.from_maxima(merge_maxima(parts)), replace(request, sources=sources)


def _bundles(looks: Sequence[_Look]) -> Iterator[list[_Look]]:
    bundle: list[_Look] = []
    for look in looks:
        if bundle and sum(len(one.indexes) for one in (*bundle, look)) > BUNDLE:
            yield bundle
            bundle = []
        bundle.append(look)
    if bundle:
        yield bundle


def _absmax(work: tuple[ProducerSettings, Sequence[_Look]]) -> Maxima | FcacheError:
    """Looks at frames, on a worker; an error the user can mend comes back as a value."""
    settings, looks = work
    try:
        # Both are asked in turn, so that no more than a frame is held between them.
        frames, again = tee(frame for look in looks for frame in _canvases(look))
        return BackboneProducer(settings).calibrate(
            (canvas for canvas, _ in frames), (valid for _, valid in again)
        )
    except FcacheError as error:
        return error


def _canvases(look: _Look) -> Iterator[tuple[npt.NDArray[np.uint8], tuple[int, int]]]:
    """Yields the chosen frames of a source; of a broken one, those before the damage."""
    planned = look.planned
    request = planned.request
    wanted = set(look.indexes)
    at = placement_of(request)
    frames = decode(
        planned.source.path, planned.source.kind, look.selection, wanted=wanted.__contains__
    )
    with closing(cast("Any", frames)):
        try:
            for index, frame in enumerate(frames):
                if frame is not None:
                    yield draw(frame.rgb, at), (at.crop_h, at.crop_w)
                if index >= max(wanted):
                    return
        except (SourceError, ValueError):
            return
