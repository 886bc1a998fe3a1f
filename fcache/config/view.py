"""Which frames of a source are taken, and the canvas the backbone sees of each."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fcache.config.settings import Settings
from fcache.config.sizes import Crop, ShortSide, SideRange, Size

PATCH_14_MULTIPLE = 28  # pixels; two patches of 14, so that every level has whole tokens


class Selection(Settings):
    """Which frames of a source are taken; part of an item's identity.

    ``fps`` takes, for k = 0, 1, 2..., the last frame whose time is <= start + k / fps, each frame
    once: the first is the one on screen at ``start``. ``stride`` takes every n-th frame from the
    first at or after ``start``. ``start`` and ``end`` are seconds from the first frame, ``end``
    exclusive.
    """

    fps: float | None = Field(default=None, gt=0)
    stride: int = Field(default=1, ge=1)
    start: float = Field(default=0.0, ge=0)
    end: float | None = Field(default=None, gt=0)
    max_frames: int | None = Field(default=None, ge=1)
    on_error: Literal["quarantine", "keep_prefix"] = "quarantine"

    @model_validator(mode="after")
    def _consistent(self) -> Selection:
        if self.fps is not None and self.stride != 1:
            raise ValueError("fps= and stride= both choose frames; give one of them")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end={self.end} is not after start={self.start} (seconds)")
        return self

    def identity(self) -> dict[str, Any]:
        """Returns the selection as it enters an item's name: what departs from every frame."""
        return self.model_dump(mode="json", exclude_defaults=True)


class ViewGeometry(Settings):
    """How a frame becomes the padded canvas the backbone sees; part of a view's identity.

    Either the short side is resized to ``short_side`` (the long side never above
    ``long_side_max``), or the frame is resized to ``size`` = (height, width), all in pixels.
    ``patch`` 16 (the DVIS++ way; also what pyramids use) pads right and bottom to multiples of
    32; ``patch`` 14 resizes both sides to the nearest multiple of 28 and pads nothing.
    ``fcache.sources.geometry`` says what sides above 1344 are padded to.

    With ``crop`` = (height, width) it is a crop view: of the resized frame a part of at most that
    size is kept. A short side out of the range, a flip and the part's place are drawn once per
    video and draw, from ``crop_seed``.
    """

    short_side: ShortSide | None = None
    long_side_max: int | None = Field(default=None, ge=1)
    size: Size | None = None
    patch: Literal[14, 16] = 16
    flip: bool = False
    crop: Crop | None = None
    crop_seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> ViewGeometry:
        if (self.short_side is None) == (self.size is None):
            wanted = "short_side=N or size=HEIGHTxWIDTH, one of the two"
            if self.crop is not None:
                wanted = "short_side=N or short_side=LOW..HIGH with crop="
            raise ValueError(f"give {wanted}")
        if self.size is not None and self.long_side_max is not None:
            raise ValueError("long_side_max= limits short_side=; it has no meaning with size=")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={self.size[0]}x{self.size[1]} has an empty side")
        short = self.short_side
        most = short.high if isinstance(short, SideRange) else short
        if most and self.long_side_max is not None and self.long_side_max < most:
            raise ValueError(f"long_side_max={self.long_side_max} is below short_side={short}")
        self._check_crop()
        return self

    def _check_crop(self) -> None:
        if self.crop is None:
            if isinstance(self.short_side, SideRange):
                raise ValueError(
                    f"short_side={self.short_side} is a range, from which only crop= draws; "
                    f"give crop=604, or one side such as short_side={self.short_side.high}"
                )
            if self.crop_seed != 0:
                raise ValueError(f"crop_seed={self.crop_seed} has no meaning without crop=")
            return
        crop = f"crop={self.crop[0]}x{self.crop[1]}"
        if min(self.crop) < 1:
            raise ValueError(f"{crop} has an empty side")
        if self.size is not None:
            raise ValueError(
                f"{crop} is cut from a frame resized by short_side=; it has no meaning with size="
            )
        if self.flip:
            raise ValueError(f"flip=true has no meaning with {crop}: its flips are drawn")
        for side in self.crop if self.patch == 14 else ():
            if side % PATCH_14_MULTIPLE:
                below = side - side % PATCH_14_MULTIPLE
                near = [f"{n}" for n in (below, below + PATCH_14_MULTIPLE) if n]
                raise ValueError(
                    f"{crop}: {side} is not a multiple of {PATCH_14_MULTIPLE}, which patch=14 "
                    f"needs; nearest: {', '.join(near)}"
                )

    def identity(self) -> dict[str, Any]:
        """Returns the geometry as it enters a view's identity, in JSON's types.

        Full views leave out what only crop views have, so that their keys do not depend on it.
        """
        crop_only = {"crop", "crop_seed"} if self.crop is None else set()
        return self.model_dump(mode="json", exclude=crop_only)
