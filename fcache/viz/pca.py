"""Pictures of stage outputs: the first three principal components as red, green and blue.

One basis is fitted per stage over all frames given, so a colour means the same in every picture of
a grid. Nothing is random, and signs are fixed: the same features give the same picture. Backbones
with windowed position embeddings (Hiera) print a lattice over the early stages that would fill all
three components; where one explains much of the variance it is taken off, and the heading says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcache.viz.canvas import Picture, Row, sheet

Stage = NDArray[np.floating]  # [h, w, C]
MAX_TOKENS = 20_000  # a basis is fitted on at most so many, evenly spaced
PERIODS = (2, 4, 7, 8, 14, 16)  # sides of attention windows in use, tokens
LATTICE_SHARE = 0.2  # of the variance, from which a lattice is taken off
SPREAD = (1.0, 99.0)  # percentiles shown as 0 and 255: single outlier tokens do not wash it out


@dataclass(frozen=True, slots=True)
class PcaBasis:
    """What is taken off a stage, three directions of its channels, and the range shown of each."""

    mean: NDArray[np.float64]  # [p, p, C], p the period of the lattice; 1 where there is none
    axes: NDArray[np.float64]  # [C, 3]
    low: NDArray[np.float64]  # [3]
    high: NDArray[np.float64]  # [3]

    def picture(self, stage: Stage) -> Picture:
        """Returns the stage's picture [h, w, 3] uint8, a pixel a token."""
        scores = (stage - _tiled(self.mean, stage.shape)) @ self.axes
        shown = (scores - self.low) / np.maximum(self.high - self.low, 1e-12)
        picture: Picture = (np.clip(shown, 0, 1) * 255 + 0.5).astype(np.uint8)
        return picture


def fit_pca(stages: Sequence[Stage], valid: Sequence[NDArray[np.bool_]] | None = None) -> PcaBasis:
    """Returns the basis of one stage over some frames.

    Each direction's sign makes its scores skew to the positive side, so that what is rare is
    bright; where there is no skew, its largest entry is positive.

    Args:
        stages: The stage's output of every frame, [h, w, C]; sizes may differ.
        valid: Which tokens of every frame are not padding, [h, w]; None means all.

    Raises:
        ValueError: no frame, no valid token, or a value that is not finite.
    """
    if not stages:
        raise ValueError("no stage outputs; expected at least one frame")
    masks = valid or [np.ones(stage.shape[:2], bool) for stage in stages]
    if not any(mask.any() for mask in masks):
        raise ValueError("no valid token; expected at least one")
    if not all(np.isfinite(s[mask]).all() for s, mask in zip(stages, masks, strict=True)):
        raise ValueError("stage outputs hold values that are not finite")
    mean = _lattice(stages, masks)
    centred = np.concatenate(
        [(s - _tiled(mean, s.shape))[mask] for s, mask in zip(stages, masks, strict=True)]
    )  # [N, C]
    centred = centred[:: -(-len(centred) // MAX_TOKENS)]
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = vectors[:, ::-1][:, :3]
    # A channel count below three, or a constant stage, leaves directions that show nothing.
    strength = np.maximum(values[::-1][:3], 0)
    axes = np.where(strength > 1e-12 * max(float(strength.sum()), 1e-300), axes, 0.0)
    axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))
    axes = axes * _signs(axes, centred @ axes)
    low, high = np.percentile(centred @ axes, SPREAD, axis=0)
    return PcaBasis(mean, axes, low, high)


def _tiled(mean: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Returns the lattice [h, w, C] under a stage of that shape."""
    period = len(mean)
    rows, columns = np.arange(shape[0]) % period, np.arange(shape[1]) % period
    return mean[rows[:, None], columns[None, :]]


def _lattice(stages: Sequence[Stage], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Returns the mean token, or a mean per place in a window where that explains far more."""
    plain, total = _place_means(stages, masks, 1)
    shares = {}
    for period in PERIODS:
        # Fewer than four windows a frame would take the picture itself for a lattice.
        if all(min(stage.shape[:2]) >= 4 * period for stage in stages):
            means, left = _place_means(stages, masks, period)
            shares[period] = (1 - left / max(total, 1e-300), means)
    best = max((share for share, _ in shares.values()), default=0.0)
    if best < LATTICE_SHARE:
        return plain
    return next(means for share, means in shares.values() if share > 0.9 * best)


def _place_means(
    stages: Sequence[Stage], masks: Sequence[NDArray[np.bool_]], period: int
) -> tuple[NDArray[np.float64], float]:
    """Returns the mean token of each place in a window, and the squares left without it."""
    places, tokens = [], []
    for stage, mask in zip(stages, masks, strict=True):
        rows, columns = np.nonzero(mask)
        places.append(rows % period * period + columns % period)
        tokens.append(stage[mask].astype(np.float64))
    place, token = np.concatenate(places), np.concatenate(tokens)
    means = np.zeros((period * period, token.shape[1]))
    for number in range(period * period):
        here = place == number
        if here.any():
            means[number] = token[here].mean(0)
    left = float(np.square(token - means[place]).sum())
    return means.reshape(period, period, -1), left


def _signs(axes: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    skew = (scores**3).mean(0) / np.maximum(scores.std(0), 1e-12) ** 3
    largest = axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]
    return np.where(np.where(np.abs(skew) > 1e-3, skew, largest) < 0, -1.0, 1.0)


def pca_sheet(
    frames: Sequence[Picture],  # [height, width, 3] each, the canvas the backbone saw
    stages: Sequence[Sequence[Stage]],  # per frame, its stages
    *,
    names: Sequence[str] = (),
    valid_sizes: Sequence[tuple[int, int]] | None = None,
    tile_width: int = 320,
) -> Image.Image:
    """Returns a grid with a row per frame: frame | stage 0 | stage 1 | ...

    Args:
        frames: The frames, padded as the backbone saw them.
        stages: Their stage outputs, [h, w, C].
        names: A caption per row.
        valid_sizes: (height, width) of each frame without padding; only that is fitted and shown.
        tile_width: Width of each picture, pixels.

    Raises:
        ValueError: there are not as many stage lists as frames, or none.
    """
    if not frames or len(frames) != len(stages):
        raise ValueError(f"{len(frames)} frames and {len(stages)} lists of stages; expected equal")
    sizes = valid_sizes or [(frame.shape[0], frame.shape[1]) for frame in frames]
    cut = [
        [_cut(stage, frame.shape, size) for stage in frame_stages]
        for frame, frame_stages, size in zip(frames, stages, sizes, strict=True)
    ]
    bases = [fit_pca([row[index] for row in cut]) for index in range(len(cut[0]))]
    rows = []
    for number, (frame, row, size) in enumerate(zip(frames, cut, sizes, strict=True)):
        tiles = [frame[: size[0], : size[1]]]
        tiles += [basis.picture(stage) for basis, stage in zip(bases, row, strict=True)]
        rows.append(Row(tiles, names[number] if names else ""))
    headings = ["frame"]
    for index, (basis, stage) in enumerate(zip(bases, cut[0], strict=True)):
        side = len(basis.mean)
        lattice = f" · {side}x{side} lattice off" if side > 1 else ""
        headings.append(f"stage {index} · {stage.shape[2]} ch{lattice}")
    return sheet(rows, headings, tile_width=tile_width)


def _cut(stage: Stage, canvas: Sequence[int], size: tuple[int, int]) -> Stage:
    """Returns the tokens that have a valid pixel."""
    rows = -(-size[0] * stage.shape[0] // canvas[0])
    columns = -(-size[1] * stage.shape[1] // canvas[1])
    return stage[:rows, :columns]
