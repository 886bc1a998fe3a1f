"""One head's part in one video: batches go in, PNGs and a record come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import torch

from fcache.config import PredictConfig
from fcache.data.batch import DeviceBatch
from fcache.data.footage import Footage
from fcache.errors import FeatureError
from fcache.models import FrameOutput
from fcache.models.panoptic import Canvas
from fcache.predict.maps import LinkedMaps, MapRules, SingleMaps, VideoMaps
from fcache.predict.plan import Prepared
from fcache.predict.schedule import VideoSchedule
from fcache.predict.writer import VideoWriter


class VideoPart:
    """Predicts windows of one video with one head.

    Args:
        one: The head and its folder.
        planned: The windows.
        maps: What outputs become.
        writer: Where maps go.
    """

    def __init__(
        self, one: Prepared, planned: VideoSchedule, maps: VideoMaps, writer: VideoWriter
    ) -> None:
        self.head, self.form = one.head, one.folder.format
        self.planned, self.maps, self.writer = planned, maps, writer
        self._canvas: Canvas | None = None

    def see(self, window: Sequence[int], batch: DeviceBatch) -> None:
        """Predicts the next window, in the first pass."""
        canvas = self._canvas = self._canvas or self._canvas_of(batch)
        for made in self.maps.see(window, self._output(window, batch), canvas):
            self.writer.write(made)

    def place_held(self, device: torch.device) -> None:
        """Places what was held of the first pass."""
        assert self._canvas is not None
        self.maps.place_held(self._canvas, device)

    def place(self, number: int, window: Sequence[int], batch: DeviceBatch) -> None:
        """Predicts a window again, in the second pass."""
        assert self._canvas is not None
        self.maps.place(number, self._output(window, batch), self._canvas)

    def finish(self) -> None:
        """Writes what was not known before the last frame."""
        for made in self.maps.finish():
            self.writer.write(made)

    @torch.no_grad()
    def _output(self, window: Sequence[int], batch: DeviceBatch) -> FrameOutput:
        output: FrameOutput = self.head.module(batch.stages, batch.pixels, keep_aux=False)
        told = (output.final.class_logits, output.final.mask_logits, output.queries)
        if not all(bool(torch.isfinite(values).all()) for values in told):
            names = [self.planned.video.names[position] for position in (window[0], window[-1])]
            raise FeatureError(
                f"'{self.head.path}' gives numbers that are not finite for video "
                f"'{self.planned.video.video_id}', frames '{names[0]}' to '{names[1]}': its "
                "weights hold such numbers, or the features are far from those it was trained on. "
                "Expected weights that were trained to the end, and features of their view."
            )
        return output

    def _canvas_of(self, batch: DeviceBatch) -> Canvas:
        """From masks to the frame's own size; the networks of clips and of images differ in how."""
        height, width = batch.pixels.shape[-2:]
        x, y = batch.extents[0]
        return Canvas(
            padded=(height, width),
            valid=(round(y * height), round(x * width)),
            output=source_size(self.planned.video),
            resized="probabilities" if self.form.is_linked else "logits",
        )


@contextmanager
def video_part(one: Prepared, planned: VideoSchedule, config: PredictConfig) -> Iterator[VideoPart]:
    """Yields a head's part in a video; on leaving, its maps are seen, and then its record.

    Raises:
        NoSpaceError: the disk is full; nothing of the video is left behind.
    """
    folder, head, video = one.folder, one.head, planned.video
    rules = MapRules(
        tuple(category.isthing for category in head.categories),
        by_segments=folder.format.is_panoptic or config.semantic == "segments",
        by_queries=not folder.format.is_panoptic,
        min_score=config.min_score,
        min_overlap=config.min_overlap,
    )
    names = planned.frame_names
    with (
        folder.record(video.video_id) as record,
        folder.video(video.video_id, names) as place,
        record.open("wb") as lines,
        closing(_maps(one, planned, rules)) as maps,
    ):
        form, categories = folder.format, head.categories
        writer = VideoWriter(form, video.video_id, names, categories, place, lines)
        yield VideoPart(one, planned, maps, writer)


def source_size(video: Footage) -> tuple[int, int]:
    """Height and width of a video's frames as they were before they were resized, pixels."""
    return int(video.placement["source_h"]), int(video.placement["source_w"])


def _maps(one: Prepared, planned: VideoSchedule, rules: MapRules) -> VideoMaps:
    if not one.folder.format.is_linked:
        return SingleMaps(rules)
    return LinkedMaps(rules, planned.num_held, one.folder.path, source_size(planned.video))
