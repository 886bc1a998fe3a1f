"""The compact tier's arithmetic: int8 = token scale x static channel scale.

A value is read back as ``q * token_scale * channel_scale``. The channel scales are the view's,
frozen; the token scale is what the token itself needs, so a token never clips. Rounding is done
where the features are, before they are copied to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcache.backbones.compact import to_levels_, token_scales
from fcache.extract.precision import ERROR_COLUMNS


class Quantised(NamedTuple):
    """A stage output in int8, with what it takes to read it back, and what that costs.

    Attributes:
        values: ``[B, h, w, C]`` int8.
        scale: ``[B, h, w]`` float16; 0 for a token of zeros, infinite where float16 cannot hold
            what the token needs, NaN where the features are not numbers.
        errors: ``[B, K]`` float64, the columns of ``precision.ERROR_COLUMNS``.
    """

    values: Tensor
    scale: Tensor
    errors: Tensor


class Quantiser:
    """Quantises the stage outputs of a view.

    Args:
        channel_scales: The largest magnitude of each channel of each stage, as calibrated.
        device: Where the features will be.
    """

    def __init__(
        self,
        channel_scales: Sequence[npt.NDArray[np.float32]],  # S of [C]
        device: torch.device,
    ) -> None:
        self._scales = [torch.tensor(scale, device=device) for scale in channel_scales]

    def quantise(
        self,
        stage: int,
        features: Tensor,  # [B, h, w, C] float32
        valid: Sequence[tuple[int, int]],  # B of (rows, columns) of tokens with a valid pixel
    ) -> Quantised:
        """Returns a stage output in int8, the same bits on every device.

        Takes two temporaries of the features' size. Tokens outside the valid area are quantised
        like any other and left out of the errors.

        Raises:
            ValueError: the features are not those of this stage.
        """
        channels = self._scales[stage]
        if features.dtype != torch.float32 or features.shape[3:] != channels.shape:
            raise ValueError(
                f"features are {features.dtype} {tuple(features.shape)}; expected float32 "
                f"[B, h, w, {len(channels)}]"
            )
        scaled = features / channels
        bulk = _norm(scaled)
        scale = token_scales(scaled)
        levels = to_levels_(scaled, scale)
        values = levels.to(torch.int8)
        read_back = levels.mul_(scale.float().unsqueeze(-1)).mul_(channels)
        read_norm = _norm(read_back)
        error = features - read_back
        errors = _sums(
            _mask(valid, features),
            signal=_norm(features),
            read_back=read_norm,
            noise=_norm(error),
            bulk_signal=bulk,
            bulk_noise=_norm(error.div_(channels)),
        )
        return Quantised(values, scale, errors)


def rounding_errors(
    features: Tensor,  # [B, h, w, C] float32
    read_back: Tensor,  # [B, h, w, C] float32
    channels: Tensor,  # [C] float32, of the stage
    valid: Sequence[tuple[int, int]],  # B of (rows, columns) of tokens with a valid pixel
) -> Tensor:  # [B, K] float64
    """Returns what it costs to store features as something else: ``ERROR_COLUMNS``."""
    error = features - read_back
    return _sums(
        _mask(valid, features),
        signal=_norm(features),
        read_back=_norm(read_back),
        noise=_norm(error),
        bulk_signal=_norm(features / channels),
        bulk_noise=_norm(error.div_(channels)),
    )


def valid_tokens(valid: Sequence[tuple[int, int]], stride: int) -> list[tuple[int, int]]:
    """Returns how many rows and columns of tokens hold a valid pixel.

    Args:
        valid: Height and width of each frame in pixels, at the canvas's top left.
        stride: Pixels a token.
    """
    return [(math.ceil(height / stride), math.ceil(width / stride)) for height, width in valid]


def _norm(vectors: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norm.double()


def _mask(valid: Sequence[tuple[int, int]], features: Tensor) -> Tensor:  # [B, h, w] bool
    count, height, width = features.shape[:3]
    if len(valid) != count:
        raise ValueError(f"{len(valid)} valid areas for {count} frames; expected one each")
    sides = torch.tensor(valid, device=features.device).reshape(count, 2, 1, 1)
    rows = torch.arange(height, device=features.device).reshape(-1, 1)
    columns = torch.arange(width, device=features.device)
    return (rows < sides[:, 0]) & (columns < sides[:, 1])


def _sums(
    mask: Tensor,
    *,
    signal: Tensor,
    read_back: Tensor,
    noise: Tensor,
    bulk_signal: Tensor,
    bulk_noise: Tensor,
) -> Tensor:  # [B, K]
    """Per-token norms ``[B, h, w]`` to the columns of ``ERROR_COLUMNS``."""
    # |x - x^|^2 = |x|^2 + |x^|^2 - 2 x.x^ gives the cosine without another product of the tensors.
    product = (signal.square() + read_back.square() - noise.square()) / 2
    lengths = signal * read_back
    cosine = torch.where(lengths > 0, product / lengths, (signal == read_back).double())
    of_token = {
        "num_tokens": torch.ones_like(signal),
        "signal": signal.square(),
        "noise": noise.square(),
        "bulk_signal": bulk_signal.square(),
        "bulk_noise": bulk_noise.square(),
        "cosine": cosine.clamp(-1, 1),
        "worst_token": torch.where(signal > 0, noise / signal, 0.0),
    }
    inside = {name: torch.where(mask, value, 0.0) for name, value in of_token.items()}
    worst = inside.pop("worst_token").amax((1, 2))
    columns = {name: value.sum((1, 2)) for name, value in inside.items()} | {"worst_token": worst}
    return torch.stack([columns[name] for name in ERROR_COLUMNS], dim=1)
