"""Sizes as people write them: ``480x864``, ``604``, ``480..1080``; all in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, PlainValidator


def _parse_size(value: object) -> object:
    """Reads ``480x864`` (height x width, pixels)."""
    if isinstance(value, str):
        height, cross, width = value.lower().partition("x")
        if not (cross and height.strip().isdecimal() and width.strip().isdecimal()):
            raise ValueError(f"'{value}' is not HEIGHTxWIDTH, for example 480x864")
        return (int(height), int(width))
    return value


def _parse_crop(value: object) -> object:
    """Reads ``604`` (a square) or ``630x1120`` (height x width), pixels."""
    if isinstance(value, str) and not value.strip().isdecimal():
        try:
            return _parse_size(value)
        except ValueError:
            raise ValueError(
                f"'{value}' is not SIDE or HEIGHTxWIDTH, for example 604 or 630x1120"
            ) from None
    if isinstance(value, int | str) and not isinstance(value, bool):
        return (int(value), int(value))
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_parse_size)]
Crop = Annotated[tuple[int, int], BeforeValidator(_parse_crop)]


@dataclass(frozen=True, slots=True)
class SideRange:
    """Sides from ``low`` to ``high`` pixels, both included; written ``480..1080``."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(
                f"'{self}' is not a range of sides; expected LOW..HIGH with 1 <= LOW <= HIGH, "
                "for example 480..1080"
            )

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


def _parse_side(value: object) -> int | SideRange:
    """Reads ``720`` or ``480..1080``; a range of one side is that side."""
    if isinstance(value, SideRange):
        return value if value.low < value.high else value.low
    low, dots, high = str(value).partition("..")
    if dots and low.strip().isdecimal() and high.strip().isdecimal():
        return _parse_side(SideRange(int(low), int(high)))
    if low.strip().isdecimal() and not dots and int(low) >= 1:
        return int(low)
    raise ValueError(
        f"'{value}' is not a number of pixels, or LOW..HIGH, for example 720 or 480..1080"
    )


ShortSide = Annotated[
    int | SideRange,
    PlainValidator(_parse_side),
    PlainSerializer(lambda side: side if isinstance(side, int) else str(side)),
]
