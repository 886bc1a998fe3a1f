"""Videos that are predicted without a cache: decoded in order, the backbone run on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fcache.backbones import load
from fcache.backbones.identity import values_identity
from fcache.config import (
    LiveExtract,
    PredictConfig,
    Selection,
    layered,
    load_recipe,
    resolve,
)
from fcache.data.features import Features
from fcache.data.sampling import ClipRequest
from fcache.data.windows import Window
from fcache.errors import ConfigError, SourceError
from fcache.manifest import load_manifest, names_manifest
from fcache.predict.inputs import PredictInputs, choose
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.decode import Frame, decode
from fcache.sources.geometry import draw, place
from fcache.sources.listing import Source, scan, scan_manifest
from fcache.sources.probe import probe_source
from fcache.train.decoded import DecodedVideo, LiveView
from fcache.train.distributed import pick_device
from fcache.train.head import read_head
from fcache.train.live import LiveFeatures, PixelFeatures
from fcache.train.rounding import Rounding

READERS = 8  # threads that look at sources before the first is predicted
USUAL_VIEW = "extract"  # the recipe of the view that evaluations use


class CanvasesInOrder:
    """Decodes clips of videos from first to last, each frame once; one thread asks.

    A video that is asked for from another frame than the next is decoded from its start.

    Args:
        selection: Which frames of a source count.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._video: DecodedVideo | None = None
        self._frames: Iterator[Frame | None] = iter(())
        self._next = 0

    def read(self, request: ClipRequest, window: Window | None, out: npt.NDArray[np.uint8]) -> None:
        """Fills ``out`` [T, H, W, 3] with the whole canvases of consecutive frames.

        Raises:
            SourceError: the video is no longer what it was; names it.
        """
        video = request.video
        assert isinstance(video, DecodedVideo)
        assert window is None
        try:
            for row, position in zip(out, request.frames, strict=True):
                row[...] = self._canvas(video, position)
        except SourceError as error:
            raise SourceError(
                f"video '{video.video_id}' ('{video.source.path}') changed while it was predicted: "
                f"{error.message} The finished videos stay; the same command looks at it again and "
                "goes on."
            ) from error

    def _canvas(self, video: DecodedVideo, position: int) -> npt.NDArray[np.uint8]:
        if video is not self._video or position != self._next:
            self._open(video, position)
        frame = next(self._frames, None)
        self._next = position + 1
        at = video.placed
        if frame is None or frame.rgb.shape[:2] != (at.source_h, at.source_w):
            raise SourceError(f"frame {position} lacks, or has another size.")
        return draw(frame.rgb, at)

    def _open(self, video: DecodedVideo, position: int) -> None:
        if self._video is not None:
            cast("Any", self._frames).close()
        source = video.source
        frames = decode(
            source.path, source.kind, self.selection, wanted=lambda number: number >= position
        )
        for _ in range(position):
            next(frames, None)
        self._video, self._frames, self._next = video, frames, position


def live_settings_of(heads: Sequence[Path], overrides: Mapping[str, str]) -> LiveExtract:
    """Returns how videos are seen: by the backbone of the first run, in the usual view.

    Args:
        heads: Runs or files of weights.
        overrides: What is given as ``extract.KEY=VALUE``.

    Raises:
        ConfigError: wrong settings, or nothing says which backbone.
    """
    recipe = {key: value for key, value in load_recipe(USUAL_VIEW).items() if key != "about"}
    runs = [path for path in heads if path.is_dir()]
    known: dict[str, Any] = {}
    if runs:
        made = read_head(runs[0]).backbone
        known |= {key: made[key] for key in ("model", "blocks", "pos")}
        known |= {"patch": made["patch"]} if made["kind"] == "vit" else {}
    elif "model" not in overrides:
        raise ConfigError(
            "nothing says which backbone the weights were trained on; expected extract.model=."
        )
    return resolve(LiveExtract, layered(LiveExtract, recipe, known), overrides)


def open_footage(
    words: Sequence[str], extract: LiveExtract, config: PredictConfig
) -> PredictInputs:
    """Looks at videos and loads the backbone that sees them.

    Every frame is decoded once to see that it is sound: a broken video is left out.

    Args:
        words: Videos, folders, globs, or a manifest.
        extract: How they are seen. What comes out is rounded as a cache of its ``dtype`` would
            round it, so that the maps are those of such a cache.
        config: Which of them.

    Raises:
        ConfigError: nothing is found, or no video of the split or name; a view of crops, or of
            int8, whose scales only a cache has; or a choice among a cache's selections.
        WeightsError: the backbone's weights cannot be found.
    """
    if extract.crop is not None or extract.flip or extract.dtype == "int8":
        raise ConfigError(
            "videos are predicted in whole, and as a cache of floats would hold them; expected no "
            "extract.crop=, no extract.flip= and no extract.dtype=int8."
        )
    if config.selection is not None:
        raise ConfigError(
            "selection= chooses among the selections of a cache; videos have none. Expected "
            "extract.fps=, extract.stride= and the like."
        )
    manifest = load_manifest(words[0]) if len(words) == 1 and names_manifest(words[0]) else None
    listing = scan_manifest(manifest) if manifest else scan(words)
    sources, chosen_by = choose(listing.sources, config, lacking="there is no video")
    memo = HashMemo()
    with ThreadPoolExecutor(READERS) as pool:
        looked = list(pool.map(partial(_look, extract, memo), sources))
    memo.flush()
    videos = [one for one in looked if isinstance(one, _Looked)]
    lost = tuple((one.video_id, one.reason) for one in looked if isinstance(one, _Lost))
    device = pick_device(config.device)
    backbone = load(extract.backbone, device=device)
    identity = values_identity(extract, backbone.description, str(backbone.weights_sha256))
    view = LiveView(identity, extract)

    def features(pixels_only: bool) -> Features:
        canvases = CanvasesInOrder(extract.selection)
        if pixels_only:
            made = backbone.description
            return PixelFeatures(canvases, made.mean, made.std, made.stages[-1].stride)
        rounding = Rounding(extract.dtype)
        return LiveFeatures(canvases, backbone, batch=extract.batch, rounding=rounding)

    return PredictInputs(
        view,
        None,
        tuple(one.video for one in videos),
        {one.video.video_id: one.content for one in videos},
        chosen_by,
        features,
        lost,
        in_order=True,
    )


@dataclass(frozen=True, slots=True)
class _Looked:
    """A sound video, and the SHA-256 of its source."""

    video: DecodedVideo
    content: str


@dataclass(frozen=True, slots=True)
class _Lost:
    """A video that cannot be predicted, and why."""

    video_id: str
    reason: str


def _look(extract: LiveExtract, memo: HashMemo, source: Source) -> _Looked | _Lost:
    path, kind = source.path, source.kind
    try:
        content = content_hash(path, kind, memo)
        facts = probe_source(path, kind)
        frames = decode(path, kind, extract.selection)
        names = tuple(frame.name for frame in frames if frame is not None)
    except SourceError as error:
        return _Lost(source.video_id, error.message)
    placed = place(facts.height, facts.width, extract.geometry)
    return _Looked(DecodedVideo(source, names, placed), content)
