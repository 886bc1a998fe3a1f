"""Stage outputs in the loop, rounded as an extraction stores them, or refused as it would."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fcache.backbones.compact import LEVELS, to_levels_, token_scales
from fcache.data.dequantise import dequantise
from fcache.errors import FeatureError
from fcache.store.writer import RANGES

ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounds stage outputs as a view stores them, and reads them back.

    Attributes:
        dtype: The view's.
        channel_scales: Of int8, those of each stage, [C] float32 on the device.
    """

    dtype: str
    channel_scales: tuple[Tensor, ...] = ()

    def __call__(
        self,
        index: int,
        stage: Tensor,  # [F, h, w, C] float32
        dtype: torch.dtype,
    ) -> Tensor:  # [F, h, w, C]
        """Returns what is read of the stage ``index`` in ``dtype`` when it was stored.

        Raises:
            FeatureError: values that an extraction would refuse to store.
        """
        largest = self._largest(index, stage)
        if self.dtype != "int8":
            return stage.to(ROUNDED[self.dtype]).to(dtype)
        channels = self.channel_scales[index]
        scaled = stage / channels
        scale = token_scales(scaled)
        if bool(scale.isinf().any()):
            raise FeatureError(
                f"stage {index}: the features reach {largest:.4g}, more than "
                f"{LEVELS * RANGES['float16']:.2g} times what calibration saw in a channel, which "
                "int8 cannot hold; expected a view of dtype=float16 or dtype=float32."
            )
        return dequantise(to_levels_(scaled, scale).to(torch.int8), scale, channels, dtype)

    def _largest(self, index: int, stage: Tensor) -> float:
        """The largest magnitude, which the type holds."""
        low, high = stage.aminmax()
        largest, limit = float(torch.maximum(-low, high)), RANGES[self.dtype]
        if not math.isfinite(largest):
            raise FeatureError(
                f"stage {index}: the features hold NaN or infinity; expected finite values. "
                "compute_dtype=float32 rules out overflow."
            )
        if largest > limit:
            raise FeatureError(
                f"stage {index}: the features reach {largest:.4g}, {self.dtype} holds up to "
                f"{limit:.4g}; dtype=bfloat16 or dtype=float32 has the range."
            )
        return largest
