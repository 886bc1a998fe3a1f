"""What a worker runs on frames: a frozen network that turns canvases into rows of a view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fcache.backbones.build import Backbone, load, versions
from fcache.config import BackboneSettings, StoredDtype
from fcache.errors import ConfigError, WeightsError

TORCH_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Produced:
    """Stage outputs of a batch, on the host, in the stored type.

    Attributes:
        stages: S of ``[B, h, w, C]``; bfloat16 as its bits in uint16.
        largest: ``[B, S]`` float64, the largest magnitude before the cast; NaN where there is one.
    """

    stages: list[npt.NDArray[np.generic]]
    largest: npt.NDArray[np.float64]


class Producer(Protocol):
    """A frozen network a worker keeps."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions and device, for the commit record."""
        ...

    def produce(
        self,
        canvases: npt.NDArray[np.uint8],  # [B, H, W, 3]
        valid: Sequence[tuple[int, int]],  # B of (height, width) in pixels
    ) -> Produced:
        """Computes the stage outputs of a batch."""
        ...


@dataclass(frozen=True, slots=True)
class ProducerSettings:
    """What a worker needs to build its producer; hashable, so that it is built once."""

    backbone: BackboneSettings
    dtype: StoredDtype
    device: str
    compile: bool
    weights_sha256: str


class BackboneProducer:
    """Runs the frozen backbone.

    Raises:
        WeightsError: the weights here are not the ones the plan was made with.
    """

    def __init__(self, settings: ProducerSettings) -> None:
        self._device = choose_device(settings.device)
        self._dtype = TORCH_DTYPES[settings.dtype]
        self._backbone: Backbone = load(
            settings.backbone, device=self._device, compile=settings.compile
        )
        found = self._backbone.weights_sha256
        if found != settings.weights_sha256:
            raise WeightsError(
                f"the weights '{settings.backbone.weights}' hash to {found[:12]} on this worker, "
                f"the plan was made with {settings.weights_sha256[:12]}; expected the same file "
                "on every machine."
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions and device, for the commit record."""
        return versions(self._device)

    def produce(
        self,
        canvases: npt.NDArray[np.uint8],  # [B, H, W, 3]
        valid: Sequence[tuple[int, int]],  # B of (height, width) in pixels
    ) -> Produced:
        """Computes the stage outputs of a batch."""
        on_device = torch.from_numpy(canvases).to(self._device, non_blocking=True)
        with torch.inference_mode():
            outputs = self._backbone(on_device, valid)
            largest = torch.stack([stage.abs().amax(dim=(1, 2, 3)) for stage in outputs], dim=1)
            stages = [_to_host(stage.to(self._dtype)) for stage in outputs]
        return Produced(stages, largest.double().cpu().numpy())


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


def _to_host(stage: torch.Tensor) -> npt.NDArray[np.generic]:
    host = stage.contiguous().cpu()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(np.uint16)
    return host.numpy()
