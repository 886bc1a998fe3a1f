"""Labels over frames: frame | truth | prediction | error, with a legend of category names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcache.manifest import Category
from fcache.viz.canvas import Picture, Row, Swatch, sheet

LabelMap = NDArray[np.integer]  # [height, width], category indexes

WRONG = (222, 48, 62)
RIGHT = (120, 190, 140)
VOID = (150, 150, 150)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A frame, what is true of it, and what was predicted; all of one size."""

    frame: Picture
    truth: LabelMap
    prediction: LabelMap
    caption: str = ""


def paint_label(
    frame: Picture, label: LabelMap, colors: Sequence[tuple[int, int, int]], *, share: float = 0.55
) -> Picture:
    """Returns a frame tinted with category colours, with outlines; void is hatched grey.

    Args:
        frame: RGB.
        label: Index into ``colors`` a pixel; any other value is void.
        colors: RGB a category.
        share: Of the colour in the mixture, 0..1; outlines are opaque.

    Raises:
        ValueError: the sizes differ.
    """
    if frame.shape[:2] != label.shape:
        raise ValueError(f"frame is {frame.shape[:2]} and label {label.shape}; expected one size")
    known = (label >= 0) & (label < len(colors))
    table = np.array([*colors, VOID], np.float32)
    color = table[np.where(known, label, len(colors))]
    mixed = frame + (color - frame) * share
    edge = _edges(np.where(known, label, -1))
    mixed[edge] = 0.25 * color[edge] + 0.75 * 255
    mixed = np.where(known[..., None] | edge[..., None], mixed, _hatched(frame))
    painted: Picture = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
    return painted


def paint_error(
    frame: Picture, truth: LabelMap, prediction: LabelMap, num_categories: int
) -> Picture:
    """Returns a pale grey frame with wrong pixels red; pixels without truth are hatched."""
    labelled = (truth >= 0) & (truth < num_categories)
    grey = frame @ np.array([0.299, 0.587, 0.114], np.float32)
    base = (105 + 0.55 * grey)[..., None] + np.zeros(3, np.float32)
    wrong = labelled & (truth != prediction)
    right = labelled & ~wrong
    base[right] = 0.9 * base[right] + 0.1 * np.array(RIGHT)
    base[wrong] = 0.25 * base[wrong] + 0.75 * np.array(WRONG)
    painted = np.where(labelled[..., None], base, _hatched(frame))
    result: Picture = np.clip(painted + 0.5, 0, 255).astype(np.uint8)
    return result


def comparison_sheet(
    comparisons: Sequence[Comparison],
    categories: Sequence[Category],
    *,
    tile_width: int = 400,
) -> Image.Image:
    """Returns a row per comparison and a legend of the categories that occur in any.

    Label values are positions in ``categories``, not their ids.

    Raises:
        ValueError: there is nothing to compare, or sizes differ.
    """
    if not comparisons:
        raise ValueError("nothing to compare; expected at least one frame")
    colors = [category.color for category in categories]
    rows: list[Row] = []
    seen: set[int] = set()
    for item in comparisons:
        truth = paint_label(item.frame, item.truth, colors)
        guess = paint_label(item.frame, item.prediction, colors)
        error = paint_error(item.frame, item.truth, item.prediction, len(colors))
        rows.append(Row([item.frame, truth, guess, error], item.caption))
        seen.update(np.unique(item.truth).tolist(), np.unique(item.prediction).tolist())
    legend = [Swatch(c.name, c.color) for index, c in enumerate(categories) if index in seen]
    legend += [Swatch("wrong", WRONG), Swatch("void", VOID)]
    headings = ("frame", "truth", "prediction", "error")
    return sheet(rows, headings, tile_width=tile_width, legend=legend)


def _edges(label: LabelMap) -> NDArray[np.bool_]:
    """Returns the pixels whose right or lower neighbour has another label."""
    edge = np.zeros(label.shape, bool)
    edge[:, :-1] |= label[:, :-1] != label[:, 1:]
    edge[:-1] |= label[:-1] != label[1:]
    return edge


def _hatched(frame: Picture) -> NDArray[np.float32]:
    y, x = np.indices(frame.shape[:2])
    stripe = ((x + y) // 4 % 2 == 0)[..., None]
    return (0.35 * frame + 0.65 * np.where(stripe, 175.0, 120.0)).astype(np.float32)
