"""The stuff of the demo's scenes: sky, mountains, meadow, lakes and sand under a panning camera.

The ground is a plane seen in perspective. A row ``y`` below the horizon has nearness
``s = (y - horizon) / (height - horizon)`` in (0, 1]: sizes on it scale with s, so a thing of size
r (in frame heights) standing there covers ``r * s * height`` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fcache.demo.texture import Array, fractal_tile, mix, rgb, sample, smoothstep, vector


class Kind(IntEnum):
    """Category ids of the rendered set, stuff first."""

    SKY = 0
    MOUNTAIN = 1
    GRASS = 2
    WATER = 3
    SAND = 4
    TREE = 5
    BALL = 6
    BOX = 7
    STAR = 8
    RING = 9


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of one time of day; they overlap between categories on purpose."""

    name: str
    zenith: Array
    haze: Array
    mountain: Array
    grass: Array
    water: Array
    sand: Array
    leaf: Array
    light: Array  # multiplies the whole picture


THEMES = (
    Theme(
        "morning", rgb(86, 150, 222), rgb(214, 232, 244), rgb(112, 124, 158), rgb(112, 172, 74),
        rgb(66, 132, 178), rgb(226, 204, 152), rgb(64, 132, 62), rgb(255, 253, 248),
    ),
    Theme(
        "dusk", rgb(82, 78, 148), rgb(252, 176, 122), rgb(96, 76, 118), rgb(122, 132, 66),
        rgb(78, 84, 140), rgb(222, 176, 134), rgb(74, 92, 60), rgb(255, 240, 226),
    ),
    Theme(
        "overcast", rgb(150, 162, 174), rgb(214, 218, 218), rgb(116, 128, 130), rgb(96, 142, 84),
        rgb(108, 132, 142), rgb(188, 178, 152), rgb(58, 98, 68), rgb(240, 245, 248),
    ),
    Theme(
        "autumn", rgb(104, 166, 206), rgb(242, 226, 200), rgb(134, 116, 112), rgb(170, 152, 70),
        rgb(74, 118, 138), rgb(216, 182, 128), rgb(196, 104, 44), rgb(255, 248, 236),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Camera:
    """Where the camera stands: ``x`` along the ground in frame heights, the horizon in pixels."""

    x: float
    horizon: float


@dataclass(frozen=True, slots=True)
class Lake:
    """An ellipse on the ground: centre across, nearness of its centre, half axes."""

    x: float
    nearness: float
    across: float
    along: float


class Landscape:
    """Paints the stuff of one video.

    Args:
        height: Pixels.
        width: Pixels.
        theme: Its colours.
        rng: Draws textures, ridges and lakes.
    """

    def __init__(self, height: int, width: int, theme: Theme, rng: np.random.Generator) -> None:
        self.height, self.width, self.theme = height, width, theme
        self.soft = fractal_tile(rng, 256, 1.9)
        self.rough = fractal_tile(rng, 256, 1.1)
        self.ridge = fractal_tile(rng, 256, 1.5)
        self.offset = float(rng.uniform(0, 1))
        self.lakes = [
            Lake(
                float(rng.uniform(-0.7, 0.7) + shift),
                float(rng.uniform(0.26, 0.42)),
                float(rng.uniform(0.9, 1.6)),
                float(rng.uniform(0.5, 0.8)),
            )
            for shift in (-2.6, 0.2, 3.0)
        ]
        self.x = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)[None, :]
        self.y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]

    def paint(
        self, camera: Camera, seconds: float
    ) -> tuple[Array, NDArray[np.uint8]]:  # [H, W, 3] in 0..1, [H, W] Kind
        """Returns the picture without things, and the category of every pixel."""
        picture = self._sky(camera)
        kinds = np.full((self.height, self.width), Kind.SKY, np.uint8)
        self._mountains(picture, kinds, camera)
        self._ground(picture, kinds, camera, seconds)
        return picture, kinds

    def _sky(self, camera: Camera) -> Array:
        theme = self.theme
        down = np.broadcast_to(self.y / camera.horizon, (self.height, self.width))
        picture = mix(theme.zenith, theme.haze, np.clip(down, 0, 1) ** 1.3)
        u = self.x * 0.32 + camera.x * 0.02 + self.offset
        v = self.y / self.height * 0.75
        u, v = np.broadcast_arrays(u, v)
        wisp = sample(self.soft, u, v) * 0.75 + sample(self.rough, u * 2, v * 2) * 0.25
        cloud = smoothstep(0.5, 0.82, wisp) * smoothstep(1.15, 0.55, down.astype(np.float32))
        white = mix(theme.haze, np.ones(3, np.float32), vector(0.75))[0]
        return mix(picture, white, cloud * 0.85)

    def _mountains(self, picture: Array, kinds: NDArray[np.uint8], camera: Camera) -> None:
        theme, height = self.theme, self.height
        for row, (parallax, rise, pale) in enumerate(((0.05, 0.34, 0.42), (0.10, 0.18, 0.15))):
            u = self.x * 0.22 + camera.x * parallax * 0.22 + self.offset * (row + 2)
            fold = sample(self.ridge, u, np.full_like(u, 0.3 + 0.4 * row))
            crest = sample(self.rough, u * 2, np.full_like(u, 0.5))
            top = camera.horizon - height * (0.03 + rise * (0.8 * fold + 0.2 * crest))
            depth = np.clip((self.y - top) / height, 0, None)
            uu, vv = np.broadcast_arrays(u * 2.5, self.y / height * 0.9)
            folds = [1 - np.abs(2 * sample(self.ridge, uu + d, vv + d / 2) - 1) for d in (0, 0.01)]
            slope = folds[0] - folds[1]
            rock = np.clip(0.85 + 2.2 * slope, 0.5, 1.25)[..., None] * theme.mountain
            grain = sample(self.rough, uu * 2, vv * 2)
            snow = smoothstep(0.075, 0.0, depth.astype(np.float32) + 0.06 * (grain - 0.3))
            peak = smoothstep(0.45, 0.7, np.broadcast_to(fold, depth.shape)) * (1 - row)
            rock = mix(
                rock,
                vector(0.95, 0.96, 1.0) * np.clip(0.9 + 1.5 * slope, 0.6, 1.0)[..., None],
                snow * peak,
            )
            fog = np.clip(pale + 0.9 * depth / (rise + 0.05) * 0.5, 0, 0.85).astype(np.float32)
            rock = mix(rock, theme.haze, fog)
            cover = np.clip(self.y - top + 0.5, 0, 1).astype(np.float32)
            picture[:] = mix(picture, rock, cover)
            kinds[cover > 0.5] = Kind.MOUNTAIN

    def _ground(
        self, picture: Array, kinds: NDArray[np.uint8], camera: Camera, seconds: float
    ) -> None:
        first = max(0, int(camera.horizon) - self.height // 16)
        y = self.y[first:]
        far = self.x * 0.5 + camera.x * 0.12 + self.offset
        roll = sample(self.soft, far, np.full_like(far, 0.8))
        edge = camera.horizon - self.height * 0.045 * roll
        near = np.clip((y - camera.horizon) / (self.height - camera.horizon), 0.02, None)
        across = (self.x / near + camera.x).astype(np.float32)
        along = np.broadcast_to(np.log(near) * 1.0, across.shape).astype(np.float32)
        grass, water, sand = self._ground_colors(across, along, near, seconds)
        shore = self._shore(across, near)
        blur = np.maximum(np.abs(np.gradient(shore, axis=0)), 1e-3)
        wet = np.clip(0.5 - (shore - 1.0) / blur, 0, 1).astype(np.float32)
        beach = np.clip(0.5 - (shore - 1.22) / blur, 0, 1).astype(np.float32)
        part = mix(mix(grass, sand, beach), water, wet)
        cover = np.clip(y - edge + 0.5, 0, 1).astype(np.float32)
        picture[first:] = mix(picture[first:], part, cover)
        kind = np.where(wet > 0.5, Kind.WATER, np.where(beach > 0.5, Kind.SAND, Kind.GRASS))
        kinds[first:] = np.where(cover > 0.5, kind, kinds[first:]).astype(np.uint8)

    def _ground_colors(
        self, across: Array, along: Array, near: Array, seconds: float
    ) -> tuple[Array, Array, Array]:
        theme = self.theme
        strength = smoothstep(0.02, 0.35, np.broadcast_to(near, across.shape))
        patches = sample(self.soft, across * 0.35, along * 0.5) - 0.5
        blades = sample(self.rough, across * 3.1, along * 1.9) - 0.5
        tone = 0.97 + 0.5 * patches * np.sqrt(strength) + 0.62 * blades * strength
        grass = mix(theme.grass * tone[..., None], theme.haze, 0.35 * (1 - strength))
        drift = np.float32(seconds * 0.05)
        ripple = sample(self.rough, across * 0.5 + drift, along * 3.0) - 0.5
        swell = sample(self.soft, across * 0.3 - drift, along * 1.5) - 0.5
        shine = np.clip(1.0 - np.broadcast_to(near, across.shape), 0, 1) * 0.45
        water = mix(theme.water, theme.haze, np.clip(shine + 0.6 * ripple + 0.3 * swell, 0, 0.8))
        grain = sample(self.rough, across * 7.3, along * 6.1) - 0.5
        dunes = np.sin(along * 60 + 6 * sample(self.soft, across * 0.6, along))
        sand = theme.sand * (0.97 + 0.2 * grain * strength + 0.05 * dunes * strength)[..., None]
        return grass, water, sand

    def dry(self, across: float, nearness: float) -> bool:
        """Returns whether a spot of the ground is neither water nor sand."""
        spot = self._shore(np.full((1, 1), across, np.float32), np.full((1, 1), nearness, "f4"))
        return bool(spot[0, 0] > 1.3)

    def _shore(self, across: Array, near: Array) -> Array:
        """Returns a field that is below 1 on water and below 1.22 on sand."""
        field = np.full(across.shape, np.inf, np.float32)
        depth = 1 / near
        for lake in self.lakes:
            centre = 1 / lake.nearness
            dx = (across - lake.x) / lake.across
            dz = (depth - centre) / (lake.along * centre)
            field = np.minimum(field, np.sqrt(dx * dx + dz * dz))
        bumps = sample(self.soft, across * 0.25, np.broadcast_to(depth * 0.06, across.shape))
        return (field + 0.45 * (bumps - 0.5)).astype(np.float32)
