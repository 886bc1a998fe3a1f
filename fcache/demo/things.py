"""The things of the demo's scenes: balls, boxes, stars, rings, and the trees they pass behind.

Each painter works in a square patch around its sprite, in coordinates whose unit is the sprite's
radius (x right, y down), and returns a colour and a signed distance (negative inside).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcache.demo.landscape import Camera, Kind
from fcache.demo.texture import Array, mix, rgb, sample, smoothstep, vector

# One palette for all classes: a colour alone does not name a class.
PAINTS = (
    rgb(214, 64, 56),
    rgb(240, 158, 48),
    rgb(42, 150, 156),
    rgb(124, 84, 176),
    rgb(188, 134, 78),
    rgb(92, 152, 66),
    rgb(70, 110, 200),
)
LIGHT = vector(-0.48, -0.62, 0.62)
WHITE = rgb(250, 246, 238)
REACH = 1.6  # side of a patch over the sprite's diameter


@dataclass(frozen=True, slots=True)
class Pose:
    """A sprite in one frame, in pixels and radians; ``ground`` is the row it stands on."""

    x: float
    y: float
    radius: float
    angle: float
    ground: float


@dataclass(frozen=True, slots=True)
class Sprite:
    """A thing (or a tree) on the ground plane.

    ``x`` is where it is at second 0, ``speed`` how far it goes a second, both in frame heights on
    the ground; ``radius`` likewise. ``nearness`` is that of the row it stands on; ``hop`` the
    height it reaches, in radii, every ``period`` seconds; ``spin`` is radians a second.
    """

    kind: Kind
    paint: Array
    nearness: float
    radius: float
    x: float
    speed: float = 0.0
    hop: float = 0.0
    lift: float = 0.0
    period: float = 1.0
    phase: float = 0.0
    spin: float = 0.0
    seed: float = 0.0

    def pose(self, seconds: float, camera: Camera, height: int, width: int) -> Pose:
        """Returns where the sprite is at a time, as the camera sees it."""
        scale = self.nearness * height
        ground = camera.horizon + self.nearness * (height - camera.horizon)
        beat = seconds / self.period + self.phase
        jump = abs(np.sin(np.pi * beat)) * self.hop + self.lift
        x = width / 2 + (self.x + self.speed * seconds - camera.x) * scale
        radius = self.radius * scale
        foot = {Kind.BOX: 0.78, Kind.TREE: 1.0}.get(self.kind, 0.97)
        y = ground - radius * (foot + jump)
        return Pose(float(x), float(y), radius, self.spin * seconds + self.phase, ground)


def draw(
    sprite: Sprite,
    pose: Pose,
    picture: Array,  # [H, W, 3] in 0..1
    owner: NDArray[np.int32],  # [H, W]
    mark: int,
    tile: Array,
) -> None:
    """Paints a sprite and its shadow, and writes ``mark`` where it covers a pixel's centre."""
    _shadow(pose, picture)
    window = _window(pose, owner.shape)
    if window is None:
        return
    rows, columns = window
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - pose.y)[:, None] / pose.radius
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - pose.x)[None, :]
    x, y = np.broadcast_arrays((x / pose.radius).astype(np.float32), y.astype(np.float32))
    color, distance = PAINTERS[sprite.kind](x, y, pose.angle, sprite, tile)
    cover = np.clip(0.5 - distance * pose.radius, 0, 1).astype(np.float32)
    picture[rows, columns] = mix(picture[rows, columns], np.clip(color, 0, 1), cover)
    owner[rows, columns][cover > 0.5] = mark


def _window(pose: Pose, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    reach = pose.radius * REACH
    top, bottom = max(0, int(pose.y - reach)), min(shape[0], int(pose.y + reach) + 1)
    left, right = max(0, int(pose.x - reach)), min(shape[1], int(pose.x + reach) + 1)
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def _shadow(pose: Pose, picture: Array) -> None:
    """Darkens the ground below a sprite, less the higher it is."""
    height = max(0.0, (pose.ground - pose.y) / pose.radius - 0.97)
    wide, flat = pose.radius * (1.05 + 0.2 * height), pose.radius * 0.24
    top, bottom = max(0, int(pose.ground - flat)), min(len(picture), int(pose.ground + flat) + 1)
    left = max(0, int(pose.x - wide))
    right = min(picture.shape[1], int(pose.x + wide) + 1)
    if top >= bottom or left >= right:
        return
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] - pose.ground) / flat
    x = (np.arange(left, right, dtype=np.float32)[None, :] - pose.x) / wide
    dark = smoothstep(1.0, 0.1, np.hypot(x, y)) * np.float32(0.5 / (1 + 0.9 * height))
    picture[top:bottom, left:right] *= 1 - dark[..., None]


def _turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _lit(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Returns diffuse light and highlight for unit normals (x, y, z)."""
    facing = np.clip(x * LIGHT[0] + y * LIGHT[1] + z * LIGHT[2], 0, 1)
    return (0.5 + 0.62 * facing).astype(np.float32), (0.55 * facing**24).astype(np.float32)


def _ball(x: Array, y: Array, angle: float, sprite: Sprite, _tile: Array) -> tuple[Array, Array]:
    """A beach ball: six panels that meet at a cap."""
    far = np.hypot(x, y)
    z = np.sqrt(np.clip(1 - far * far, 0, 1))
    px, py = _turned(x, y, angle)
    # The cap sits off centre, which makes the panels look curved.
    px, py = px + 0.35 * z - 0.1, py + 0.25 * z
    around = np.arctan2(py, px) / (2 * np.pi) * 6
    panel = np.abs(around - np.round(around)) * 2  # 0 at seams' middle, 1 at the next
    stripe = smoothstep(0.44, 0.56, panel.astype(np.float32))
    color = mix(sprite.paint, WHITE, stripe)
    color = mix(color, WHITE, smoothstep(0.2, 0.15, np.hypot(px, py)))
    light, shine = _lit(x, y, z)
    return color * light[..., None] + shine[..., None], far - 1


def _box(x: Array, y: Array, angle: float, sprite: Sprite, tile: Array) -> tuple[Array, Array]:
    """A crate in oblique view: planks in a frame, a lid and a side."""
    x, y = _turned(x, y, 0.06 * float(np.sin(angle)))
    half, deep = 0.68, 0.3
    fx, fy = x + deep * 0.42, y - deep * 0.32  # the front face is centred here
    distance = np.maximum.reduce(
        [-(fx + half), fx - half - deep, fy - half, -(fy + half + 0.75 * deep),
         (-(fy + half) * 0.8 - (fx + half) * 0.6), ((fx - half) * 0.6 + (fy - half) * 0.8)]
    )  # fmt: skip
    grain = sample(tile, fx * 0.18 + sprite.seed, fy * 1.1 + sprite.seed) - 0.5
    plank = np.abs((fy / half * 1.5 + 0.5) % 1 - 0.5)
    seam = smoothstep(0.43, 0.5, plank)
    frame = smoothstep(half - 0.19, half - 0.16, np.maximum(np.abs(fx), np.abs(fy)))
    brace = smoothstep(0.13, 0.1, np.abs(fx + fy) * 0.7)
    raised = np.maximum(frame, brace)
    tone = (0.86 + 0.5 * grain) * (1 - 0.5 * seam * (1 - raised)) * (0.9 + 0.2 * raised)
    tone *= np.where(fx > half, 0.6, np.where(fy < -half, 1.24, 1.0))
    return sprite.paint * tone[..., None], distance.astype(np.float32)


def _star(x: Array, y: Array, angle: float, sprite: Sprite, _tile: Array) -> tuple[Array, Array]:
    """A five-pointed star of ten facets."""
    px, py = _turned(x, y, angle)
    around = np.arctan2(px, -py)
    wedge = np.round(around / (2 * np.pi / 5)) * (2 * np.pi / 5)
    local = around - wedge
    far = np.hypot(px, py)
    ax, ay = np.abs(np.sin(local)) * far, np.cos(local) * far
    # The edge runs from the tip (0, 1) to the notch between two points.
    notch = vector(np.sin(np.pi / 5), np.cos(np.pi / 5)) * 0.47
    along = vector(notch[0], notch[1] - 1)
    normal = vector(-along[1], along[0]) / np.hypot(along[0], along[1])
    distance = ax * normal[0] + (ay - 1) * normal[1]
    side = np.where(local > 0, 1.0, -1.0)
    tilt = wedge + side * 0.75 + angle
    nx, ny = np.sin(tilt) * 0.62, -np.cos(tilt) * 0.62
    light, shine = _lit(nx, ny, np.full_like(nx, 0.78))
    rim = smoothstep(-0.1, -0.05, distance.astype(np.float32))
    color = mix(sprite.paint, WHITE, 0.55 * rim)
    return color * (light * 1.08)[..., None] + shine[..., None], distance.astype(np.float32)


def _ring(x: Array, y: Array, angle: float, sprite: Sprite, _tile: Array) -> tuple[Array, Array]:
    """A life ring with four bands; the hole shows what is behind."""
    far = np.hypot(x, y)
    across = np.clip((far - 0.7) / 0.3, -1, 1)
    px, py = _turned(x, y, angle)
    turn = np.arctan2(py, px) / (2 * np.pi) * 4
    band = smoothstep(0.3, 0.27, np.abs(turn - np.round(turn)).astype(np.float32))
    ux, uy = x / np.maximum(far, 1e-3), y / np.maximum(far, 1e-3)
    light, shine = _lit(ux * across, uy * across, np.sqrt(1 - across * across))
    color = mix(WHITE, sprite.paint, band)
    return color * light[..., None] + shine[..., None], np.abs(far - 0.7) - 0.3


def _tree(x: Array, y: Array, _angle: float, sprite: Sprite, tile: Array) -> tuple[Array, Array]:
    """A round tree: a trunk and a bumpy crown of leaves."""
    bumps = sample(tile, x * 0.22 + sprite.seed, y * 0.22 + sprite.seed) - 0.5
    crown = np.full_like(x, np.inf)
    for cx, cy, r in ((0.0, -0.55, 0.46), (-0.36, -0.22, 0.38), (0.37, -0.2, 0.39)):
        crown = np.minimum(crown, np.hypot(x - cx, y - cy) - r)
    crown = crown + 0.24 * bumps
    trunk = np.maximum(np.abs(x) - 0.07 - 0.05 * np.clip(y - 0.6, 0, 1), np.abs(y - 0.5) - 0.5)
    leaf = sample(tile, x * 0.7 + sprite.seed, y * 0.7) - 0.5
    tone = 0.86 + 0.75 * leaf - 0.22 * x - 0.34 * (y + 0.3)
    green = sprite.paint * np.clip(tone, 0.35, 1.6)[..., None]
    bark = rgb(104, 76, 54) * (0.9 - 2.2 * x + 0.4 * bumps)[..., None]
    color = np.where((crown < 0)[..., None], green, bark)
    return color.astype(np.float32), np.minimum(crown, trunk)


Painter = Callable[[Array, Array, float, Sprite, Array], tuple[Array, Array]]
PAINTERS: dict[Kind, Painter] = {
    Kind.BALL: _ball,
    Kind.BOX: _box,
    Kind.STAR: _star,
    Kind.RING: _ring,
    Kind.TREE: _tree,
}
