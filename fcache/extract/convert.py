"""Stored stage outputs turned into another stored type, and the scales that int8 takes for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fcache.backbones.compact import LEVELS
from fcache.errors import FeatureError
from fcache.extract.calibrate import Calibration, Maxima, choose_frames
from fcache.extract.produced import Array, Produced, to_host
from fcache.extract.quantise import Quantiser, rounding_errors, valid_tokens
from fcache.store.cache import View
from fcache.store.clip import Clip

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


class Converter:
    """Converts the stage outputs of a view.

    Args:
        source: The view.
        dtype: What values become.
        calibration: Of int8, the channel scales.
        device: Where it is computed.
    """

    def __init__(
        self, source: View, dtype: str, calibration: Calibration | None, device: torch.device
    ) -> None:
        layout = source.index.layout
        self._plain = layout.plain
        self._strides = layout.strides
        self._dtype = DTYPES.get(dtype)
        self._device = device
        self._quantiser: Quantiser | None = None
        if calibration is not None:
            self._quantiser = Quantiser(calibration.channel_scales, device)
        # What the errors of channels are weighed by; without scales every channel counts as it is.
        weights = source.channel_scales or tuple(np.ones(c, np.float32) for c in layout.channels)
        self._weights = [torch.tensor(scale, device=device) for scale in weights]

    def convert(self, clip: Clip, valid: Sequence[tuple[int, int]]) -> Produced:
        """Returns a clip's stage outputs in the wanted type, with what that costs.

        Args:
            clip: All stages of some frames.
            valid: Height and width of each frame on its canvas, pixels.

        Raises:
            FeatureError: int8 cannot hold the values.
        """
        values: list[Array] = []
        scales: list[Array] = []
        errors, largest = [], []
        for stage, stride in enumerate(self._strides):
            features = _features(clip, stage, self._device)
            tokens = valid_tokens(valid, stride)
            largest.append(torch.maximum(features.amax((1, 2, 3)), -features.amin((1, 2, 3))))
            if self._quantiser is not None:
                quantised = self._quantiser.quantise(stage, features, tokens)
                values.append(to_host(quantised.values))
                scales.append(to_host(quantised.scale))
                errors.append(quantised.errors)
                _check_scales(scales[-1], stage)
            else:
                rounded = features.to(self._dtype)
                values.append(to_host(rounded))
                weights = self._weights[stage]
                errors.append(rounding_errors(features, rounded.float(), weights, tokens))
        return Produced(
            {**self._named("tokens", "stage", values), **self._named("scale", "scale", scales)},
            torch.stack(largest, dim=1).double().cpu().numpy(),
            torch.stack(errors, dim=1).cpu().numpy(),
        )

    def _named(self, plain: str, pyramid: str, values: list[Array]) -> dict[str, list[Array]]:
        if not values:
            return {}
        if self._plain:
            return {plain: values}
        return {f"{pyramid}{stage}": [value] for stage, value in enumerate(values)}


def calibrate_stored(
    source: View, device: torch.device, progress: Callable[[int, int], None]
) -> Calibration:
    """Returns channel scales from stored values of at most 500 frames of a view.

    Args:
        source: The view; frames are chosen as an extraction chooses them.
        device: Where it is computed.
        progress: Told how many frames were looked at, of how many.

    Raises:
        FeatureError: a value is not a number.
        CacheCorruptError: stored bytes are not what was committed.
    """
    entries = list(source.catalogue.entries())
    outcomes = source.state.outcomes
    chosen = choose_frames(
        [
            (
                entry.item.content,
                entry.split,
                outcomes[entry.item.item].num_frames + len(entry.item.borrowed),
            )
            for entry in entries
        ]
    )
    total = sum(len(frames) for _, frames in chosen)
    layout = source.index.layout
    # Filled in place: a small array kept of each frame would lie between the large ones that are
    # freed, and no two of these could be taken together again.
    absmax = tuple(np.zeros(channels, np.float32) for channels in layout.channels)
    num_frames = 0
    for at, frames in chosen:
        held = source.catalogue.frames(*entries[at])
        for frame in frames:
            clip = source.read(held, [frame], pixels=False)
            for stage, stride in enumerate(layout.strides):
                [(rows, columns)] = valid_tokens([clip.valid], stride)
                seen = _features(clip, stage, device)[0, :rows, :columns].abs().amax((0, 1))
                np.maximum(absmax[stage], seen.cpu().numpy(), out=absmax[stage])
            num_frames += 1
            progress(num_frames, total)
    return Calibration.from_maxima(Maxima(absmax, num_frames))


def _features(clip: Clip, stage: int, device: torch.device) -> Tensor:  # [T, h, w, C] float32
    return torch.from_numpy(clip.floats(stage)).to(device, non_blocking=True).float()


def _check_scales(scales: Array, stage: int) -> None:
    if not np.isfinite(scales).all():
        raise FeatureError(
            f"stage {stage}: values are more than {LEVELS * float(np.finfo(np.float16).max):.2g} "
            "times what calibration saw in their channel, which int8 cannot hold; expected "
            "dtype=bfloat16 or dtype=float32 for such a view."
        )
