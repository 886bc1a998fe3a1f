"""What a worker runs on frames: a frozen network that turns canvases into rows of a view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fcache.backbones.build import Backbone, load, versions
from fcache.backbones.compact import LEVELS
from fcache.config import BackboneSettings, StoredDtype
from fcache.errors import ConfigError, FeatureError, WeightsError
from fcache.extract.calibrate import Calibration, Maxima, calibrate_frames, merge_maxima
from fcache.extract.halving import Halving
from fcache.extract.produced import Array, Produced, joined, to_host
from fcache.extract.quantise import Quantiser, valid_tokens
from fcache.report import Report

__all__ = ["BackboneProducer", "Produced", "Producer", "ProducerSettings", "choose_device"]

Sides = Sequence[tuple[int, int]]  # of (height, width) in pixels
TORCH_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def _silent(event: dict[str, Any]) -> None:
    """Tells nobody."""


class Producer(Protocol):
    """A frozen network a worker keeps."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions and device, for the commit record."""
        ...

    def produce(
        self,
        canvases: npt.NDArray[np.uint8],  # [B, H, W, 3]
        valid: Sides,
        report: Report = ...,
    ) -> Produced:
        """Computes the stage outputs of a batch."""
        ...

    @property
    def mixed_provenance(self) -> dict[str, Any]:
        """The same for ``produce_mixed``."""
        ...

    def produce_mixed(
        self,
        canvases: Sequence[npt.NDArray[np.uint8]],  # F of [H, W, 3], of any sizes
        valid: Sides,
        report: Report = ...,
    ) -> list[Produced]:
        """Computes the stage outputs of frames of different sizes together."""
        ...


@dataclass(frozen=True, slots=True)
class ProducerSettings:
    """What a worker needs to build its producer; hashable, so that it is built once.

    ``calibration`` holds the channel scales of ``dtype="int8"``; without it such a producer can
    only calibrate.
    """

    backbone: BackboneSettings
    dtype: StoredDtype
    device: str
    compile: bool
    weights_sha256: str
    calibration: Calibration | None = None


class BackboneProducer:
    """Runs the frozen backbone.

    Raises:
        ConfigError: there is no such device here.
        WeightsError: the weights here are not the ones the plan was made with.
    """

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._device = choose_device(settings.device)
        self._backbone = _backbone(settings, self._device)
        self._halving = Halving(self._device)
        self._quantiser: Quantiser | None = None
        if settings.dtype == "int8" and settings.calibration is not None:
            self._quantiser = Quantiser(settings.calibration.channel_scales, self._device)

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions and device, for the commit record."""
        return versions(self._device)

    @property
    def mixed_provenance(self) -> dict[str, Any]:
        """The same for ``produce_mixed``, whose attention may be another."""
        return versions(self._device, attention=self._backbone.mixed_attention)

    def produce(
        self,
        canvases: npt.NDArray[np.uint8],  # [B, H, W, 3]
        valid: Sides,  # B
        report: Report = _silent,
    ) -> Produced:
        """Computes the stage outputs of a batch.

        Args:
            canvases: Padded frames.
            valid: What of each canvas holds the frame, at the top left.
            report: Told ``{"event": "halved", "batch": n, "canvas": "HxW"}`` when the batch does
                not fit the device's memory; this and later batches are computed n at a time.

        Raises:
            ConfigError: one frame alone does not fit the device's memory.
            FeatureError: int8 cannot hold the features.
        """
        count, height, width, _ = canvases.shape

        def compute(part: slice) -> Produced:
            on_device = torch.from_numpy(canvases[part]).to(self._device, non_blocking=True)
            with torch.inference_mode():
                outputs = self._backbone(on_device, valid[part])
                return self._store(outputs, valid[part])

        return joined(self._halving.run(f"{height}x{width}", count, compute, report))

    def produce_mixed(
        self,
        canvases: Sequence[npt.NDArray[np.uint8]],  # F of [H, W, 3], of any sizes
        valid: Sides,  # F
        report: Report = _silent,
    ) -> list[Produced]:
        """Computes the stage outputs of frames of different sizes together, one result a frame.

        Each result equals that of ``produce`` for its frame up to rounding.

        Raises:
            ConfigError: as ``produce``; or the network takes one size at a time.
            FeatureError: int8 cannot hold the features.
        """
        height, width = max((canvas.shape[:2] for canvas in canvases), default=(0, 0))

        def compute(part: slice) -> list[Produced]:
            on_device = [torch.from_numpy(one).to(self._device) for one in canvases[part]]
            with torch.inference_mode():
                frames = self._backbone.forward_mixed(on_device, valid[part])
                return [
                    self._store([stage[None] for stage in outputs], [area])
                    for outputs, area in zip(frames, valid[part], strict=True)
                ]

        canvas = f"{height}x{width}, sizes mixed"
        pieces = self._halving.run(canvas, len(canvases), compute, report)
        return [produced for piece in pieces for produced in piece]

    def calibrate(
        self,
        canvases: Iterable[npt.NDArray[np.uint8]],  # each [H, W, 3], of any sizes
        valid: Iterable[tuple[int, int]],
    ) -> Maxima:
        """Returns the largest magnitude of each channel over frames, computed one at a time.

        Raises:
            ConfigError: a frame does not fit the device's memory.
        """
        parts = [calibrate_frames(self._backbone, [], [])]
        for canvas, area in zip(canvases, valid, strict=True):
            size = f"{canvas.shape[0]}x{canvas.shape[1]}"
            parts += self._halving.run(size, 1, partial(self._look, canvas, area), _silent)
        return merge_maxima(parts)

    def _look(self, canvas: npt.NDArray[np.uint8], area: tuple[int, int], _only: slice) -> Maxima:
        return calibrate_frames(self._backbone, [canvas], [area])

    def _store(self, outputs: list[torch.Tensor], valid: Sides) -> Produced:
        """Casts or quantises on the device, then copies to the host."""
        largest = torch.stack(
            [torch.maximum(s.amax((1, 2, 3)), -s.amin((1, 2, 3))) for s in outputs], 1
        )
        magnitudes = largest.double().cpu().numpy()
        if self._settings.dtype != "int8":
            dtype = TORCH_DTYPES[self._settings.dtype]
            values = [to_host(stage.to(dtype)) for stage in outputs]
            return Produced(self._named("tokens", "stage", values), magnitudes)
        if self._quantiser is None:
            raise ValueError("dtype=int8 without a calibration; expected ProducerSettings with one")
        values, scales, errors = [], [], []
        specs = self._backbone.description.stages
        for index, (stage, spec) in enumerate(zip(outputs, specs, strict=True)):
            quantised = self._quantiser.quantise(index, stage, valid_tokens(valid, spec.stride))
            values.append(to_host(quantised.values))
            scales.append(to_host(quantised.scale))
            errors.append(quantised.errors)
            _check_scales(scales[-1], magnitudes[:, index], index)
        arrays = {
            **self._named("tokens", "stage", values),
            **self._named("scale", "scale", scales),
        }
        return Produced(arrays, magnitudes, torch.stack(errors, dim=1).cpu().numpy())

    def _named(self, plain: str, pyramid: str, values: list[Array]) -> dict[str, list[Array]]:
        if self._backbone.description.kind == "vit":
            return {plain: values}
        return {f"{pyramid}{index}": [value] for index, value in enumerate(values)}


def choose_device(name: str) -> torch.device:
    """Returns the device of a name; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name} is no device; expected auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: no CUDA device here; expected auto or cpu.")
    return device


_loaded: dict[tuple[object, ...], Backbone] = {}


def _backbone(settings: ProducerSettings, device: torch.device) -> Backbone:
    """This process's backbone: calibrating and extracting read its weights once."""
    key = (settings.backbone, settings.compile, settings.weights_sha256, device)
    if key not in _loaded:
        _loaded.clear()  # the one before would only hold memory
        loaded = load(settings.backbone, device=device, compile=settings.compile)
        found = loaded.weights_sha256
        if found != settings.weights_sha256:
            raise WeightsError(
                f"the weights '{settings.backbone.weights}' hash to {found[:12]} on this worker, "
                f"the plan was made with {settings.weights_sha256[:12]}; expected the same file "
                "on every machine."
            )
        _loaded[key] = loaded
    return _loaded[key]


def _check_scales(scales: Array, largest: npt.NDArray[np.float64], stage: int) -> None:
    """Refuses scales that float16 cannot hold; the writer refuses what is not finite."""
    overflows = np.isinf(scales).reshape(len(scales), -1).any(1) & np.isfinite(largest)
    if overflows.any():
        limit = LEVELS * float(np.finfo(np.float16).max)
        raise FeatureError(
            f"stage {stage}: the features reach {largest[overflows].max():.4g}, more than "
            f"{limit:.2g} times what calibration saw in a channel, which int8 cannot hold; "
            "expected dtype=float16 or dtype=float32 for such features."
        )
