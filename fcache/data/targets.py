"""The segments of a clip as masks on its canvas: what losses compare predictions with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcache.data.canvas import IGNORE, label_on_canvas
from fcache.data.labels import LabelReader
from fcache.data.sampling import ClipRequest
from fcache.data.videos import LabelKind
from fcache.errors import LabelError
from fcache.store.cache import Allocate

VOID = 0  # of segment ids


@dataclass(frozen=True, slots=True, eq=False)
class ClipTargets:
    """The segments of a clip; every one is listed in every frame, absent ones with no pixel.

    Attributes:
        classes: [N] int64, class indices.
        masks: [N, T, H, W] bool, on the canvas or the window of it, at 16 pixels a token.
        ids: [N] int64: tracks, the segment ids of the label; of semantic labels the classes.
    """

    classes: Tensor
    masks: Tensor
    ids: Tensor

    def to(self, device: torch.device | str) -> ClipTargets:
        """Returns them on a device."""
        moved = [
            tensor.to(device, non_blocking=True) for tensor in (self.classes, self.masks, self.ids)
        ]
        return ClipTargets(*moved)


NO_TARGETS = ClipTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, 0, 0), torch.zeros(0))


class ClipLabels:
    """Reads the targets of clips.

    Panoptic: a segment is a track over the clip, crowds are left out. Semantic: one mask for each
    class that is present anywhere in the clip. What has no pixel in any frame is left out.

    Args:
        reader: Of the labels.
        kind: Which labels.
    """

    def __init__(self, reader: LabelReader, kind: LabelKind) -> None:
        self.reader = reader
        self.kind = kind

    def read(
        self, request: ClipRequest, *, stride: int = 16, allocate: Allocate = np.empty
    ) -> ClipTargets:
        """Returns the targets of a clip.

        Args:
            request: Which clip.
            stride: Stored pixels a token of the coarsest stage, in which windows are given.
            allocate: Gives memory for the masks.

        Raises:
            LabelError: a label is missing, damaged, of another shape than its frame, or holds a
                category or an id that nothing lists; names video and frame.
        """
        by_name = {name: self._frame(request, name, stride) for name in set(request.frame_names)}
        frames = [by_name[name] for name in request.frame_names]
        tracks = sorted({track for frame in frames for track in frame.classes.items()})
        shape = (len(tracks), len(frames), *frames[0].values.shape)
        masks = allocate(shape, "bool")
        for row, (number, category) in zip(masks, tracks, strict=True):
            for mask, frame in zip(row, frames, strict=True):
                # A segment whose category changes within the clip is one track for each.
                if frame.classes.get(number) == category:
                    np.equal(frame.values, number, out=mask)
                else:
                    mask.fill(False)
        columns = np.array(tracks, np.int64).reshape(-1, 2)
        return ClipTargets(
            classes=torch.from_numpy(columns[:, 1].copy()),
            masks=torch.from_numpy(masks),
            ids=torch.from_numpy(columns[:, 0].copy()),
        )

    def _frame(self, request: ClipRequest, name: str, stride: int) -> _Frame:
        video = request.video
        try:
            if self.kind == "semantic":
                label = self.reader.semantic(video.video_id, name, video.split)
                return self._placed(request, label, stride, None)
            panoptic = self.reader.panoptic(video.video_id, name, video.split)
            listed = {segment.id: segment for segment in panoptic.segments}
            unlisted = [n for n in distinct(panoptic.ids) if n != VOID and n not in listed]
            if unlisted:
                raise LabelError(
                    f"its panoptic PNG holds segment id {unlisted[0]}, which the JSON does not "
                    f"list for it; expected one of its {len(listed)} segments, or {VOID} for void."
                )
            classes = {n: one.category for n, one in listed.items() if not one.is_crowd}
            return self._placed(request, panoptic.ids, stride, classes)
        except LabelError as error:
            raise LabelError(
                f"video '{video.video_id}' frame '{name}': {error.message}", run=error.run
            ) from error

    def _placed(
        self,
        request: ClipRequest,
        label: npt.NDArray[Any],
        stride: int,
        classes: dict[int, int] | None,  # of segment ids
    ) -> _Frame:
        fill = IGNORE if classes is None else VOID
        values = label_on_canvas(
            label, request.video, "its label", window=request.window, stride=stride, fill=fill
        )
        present = distinct(values)
        if classes is None:
            return _Frame(values, {n: n for n in present if n != IGNORE})
        return _Frame(values, {n: classes[n] for n in present if n in classes})


def distinct(values: npt.NDArray[Any]) -> list[int]:
    """Returns the values that occur, sorted; quick where neighbours are mostly equal."""
    flat = values.ravel()
    changed = flat[1:][flat[1:] != flat[:-1]]
    found: list[int] = np.unique(np.concatenate([flat[:1], changed])).tolist()
    return found


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame's label on the canvas, and the class of each value that is a segment there."""

    values: npt.NDArray[Any]
    classes: dict[int, int]
