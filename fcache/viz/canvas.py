"""Sheets of pictures: rows of tiles of one width, with headings and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]  # [height, width, 3]

PAPER = (255, 255, 255)
INK = (38, 42, 48)
PALE_INK = (120, 126, 134)
GAP_PX = 6
MARGIN_PX = 10


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures side by side and the caption above them."""

    tiles: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Swatch:
    """An entry of a legend."""

    name: str
    color: tuple[int, int, int]


def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Pillow's own font; no font file of the machine is looked for."""
    return ImageFont.load_default(size_px)


def sheet(
    rows: Sequence[Row],
    headings: Sequence[str],
    *,
    tile_width: int,
    legend: Sequence[Swatch] = (),
) -> Image.Image:
    """Returns rows of tiles under headings, and a legend below.

    Tiles of a row share the aspect of its first. Small ones (a pixel a token) are enlarged without
    smoothing, so that tokens stay visible; larger ones are reduced smoothly.
    """
    columns = max(len(row.tiles) for row in rows)
    text_px = max(11, min(18, tile_width // 20))
    small, line = font(text_px), round(text_px * 1.6)
    heights = [round(tile_width * r.tiles[0].shape[0] / r.tiles[0].shape[1]) for r in rows]
    width = 2 * MARGIN_PX + columns * tile_width + (columns - 1) * GAP_PX
    entries = _flow(legend, width - 2 * MARGIN_PX, small, text_px)
    captions = [line if row.caption else 0 for row in rows]
    height = 2 * MARGIN_PX + line + sum(heights) + sum(captions) + GAP_PX * (len(rows) - 1)
    height += line * (1 + max(y for *_, y in entries)) + GAP_PX if entries else 0
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for column, heading in enumerate(headings):
        pen.text((MARGIN_PX + column * (tile_width + GAP_PX), MARGIN_PX), heading, INK, small)
    top = MARGIN_PX + line
    for row, tall, caption in zip(rows, heights, captions, strict=True):
        pen.text((MARGIN_PX, top), row.caption, PALE_INK, small)
        top += caption
        for column, tile in enumerate(row.tiles):
            left = MARGIN_PX + column * (tile_width + GAP_PX)
            page.paste(scaled(tile, tile_width, tall), (left, top))
        top += tall + GAP_PX
    for swatch, x, y in entries:
        at = (MARGIN_PX + x, top + y * line + (line - text_px) // 2)
        pen.rectangle((*at, at[0] + text_px, at[1] + text_px), swatch.color, PALE_INK)
        pen.text((at[0] + text_px + 5, at[1]), swatch.name, INK, small)
    return page


def scaled(tile: Picture, width: int, height: int) -> Image.Image:
    """Returns a picture at a size, pixelated when enlarged and smooth when reduced."""
    enlarged = tile.shape[1] < width
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(tile)).resize((width, height), how)


def _flow(
    legend: Sequence[Swatch],
    width: int,
    small: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text_px: int,
) -> list[tuple[Swatch, int, int]]:
    """Returns the entries with their x in pixels and their line."""
    placed, x, y = [], 0, 0
    for swatch in legend:
        wide = text_px + 5 + round(small.getlength(swatch.name)) + 16
        if x and x + wide > width:
            x, y = 0, y + 1
        placed.append((swatch, x, y))
        x += wide
    return placed
