"""Smooth random textures and the few shading helpers the demo's painters share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def fractal_tile(rng: np.random.Generator, side: int, beta: float) -> Array:  # [side, side]
    """Returns noise in 0..1 that tiles, with an amplitude spectrum of 1 / frequency ** beta."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    phase = rng.uniform(0, 2 * np.pi, frequency.shape)
    tile = np.fft.irfft2(frequency**-beta * np.exp(1j * phase), (side, side))
    low, high = np.percentile(tile, (1, 99))
    scaled: Array = np.clip((tile - low) / (high - low), 0, 1).astype(np.float32)
    return scaled


def sample(tile: Array, u: Array, v: Array) -> Array:
    """Reads a tile at ``u`` across and ``v`` down, bilinearly; one unit is one whole tile."""
    side = len(tile)
    x, y = u * side, v * side
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    left, top = x0.astype(np.int64) % side, y0.astype(np.int64) % side
    right, bottom = (left + 1) % side, (top + 1) % side
    upper = tile[top, left] * (1 - fx) + tile[top, right] * fx
    lower = tile[bottom, left] * (1 - fx) + tile[bottom, right] * fx
    value: Array = (upper * (1 - fy) + lower * fy).astype(np.float32)
    return value


def smoothstep(low: float, high: float, value: Array) -> Array:
    """Returns 0 below ``low``, 1 above ``high``, and a smooth ramp between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    ramp: Array = (t * t * (3 - 2 * t)).astype(np.float32)
    return ramp


def vector(*values: float) -> Array:
    """Returns numbers as a float32 vector."""
    return np.array(values, np.float32)


def rgb(*values: int) -> Array:  # [3]
    """Returns an 8-bit colour as floats in 0..1."""
    return vector(*(value / 255 for value in values))


def mix(first: Array, second: Array, share: Array) -> Array:  # [..., 3]
    """Blends two colours (or pictures) by a share of the second in 0..1."""
    blend: Array = (first + (second - first) * share[..., None]).astype(np.float32)
    return blend
