"""Renders a small video set with known truth: H.264 files, panoptic labels, a manifest.

The same arguments give the same pixels and labels and, from one build of x264, the same bytes.
Files are yuv420p, converted with the BT.709 matrix in limited range, and tagged so.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcache.demo.files import RenderedFrame, write_labels, write_video
from fcache.demo.landscape import THEMES, Camera, Kind, Landscape, Theme
from fcache.demo.texture import Array
from fcache.demo.things import PAINTS, Sprite, draw
from fcache.manifest import Category, Labels, Layout, Manifest, Video, load_manifest

CATEGORIES = tuple(
    Category(id=kind.value, name=kind.name.lower(), isthing=kind >= Kind.BALL, color=color)
    for kind, color in (
        (Kind.SKY, (134, 182, 232)),
        (Kind.MOUNTAIN, (142, 122, 158)),
        (Kind.GRASS, (150, 196, 92)),
        (Kind.WATER, (52, 104, 190)),
        (Kind.SAND, (232, 206, 138)),
        (Kind.TREE, (36, 116, 72)),
        (Kind.BALL, (226, 62, 70)),
        (Kind.BOX, (168, 98, 44)),
        (Kind.STAR, (252, 214, 42)),
        (Kind.RING, (178, 78, 202)),
    )
)
VOID_EVERY = 3  # every third video of a split has an unlabelled border


def render_set(
    folder: Path,
    *,
    num_train: int,
    num_val: int,
    num_frames: int,
    height: int,
    width: int,
    fps: int,
    seed: int,
) -> Manifest:
    """Renders videos, labels and ``manifest.toml`` into ``folder``; returns the manifest.

    Every second video is a quarter narrower, so that a set has two frame sizes. Files:
    ``videos/<split>/<id>.mp4``, ``panoptic/<split>/<id>/<frame>.png`` (id = R + 256 G + 65536 B,
    0 void, constant over a video) and ``panoptic_<split>.json`` in VIPSeg's shape.

    Raises:
        ValueError: a count below 1, or a side that is odd (yuv420p) or below 64 pixels.
    """
    counts = {"num_train": num_train, "num_val": num_val, "num_frames": num_frames, "fps": fps}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}; expected at least 1")
    for name, side in (("height", height), ("width", width)):
        if side % 2 or side < 64:
            raise ValueError(f"{name}={side}; expected an even number of pixels, 64 or more")
    videos: list[Video] = []
    for split, num_videos in (("train", num_train), ("val", num_val)):
        size = (height, width)
        videos += _render_split(folder, split, num_videos, num_frames, size, fps, seed, len(videos))
    manifest = Manifest(
        name="demo",
        about=f"Rendered by fcache demo, seed {seed}: things over stuff under a moving camera.",
        root=".",
        layout=Layout(videos="videos/{split}/{video}.mp4"),
        labels=(
            Labels(
                format="panoptic",
                path="panoptic/{split}/{video}/{frame}.png",
                json_path="panoptic_{split}.json",
            ),
        ),
        categories=CATEGORIES,
        videos=tuple(videos),
    )
    (folder / "manifest.toml").write_text(manifest.to_toml(), encoding="utf-8")
    return load_manifest(str(folder / "manifest.toml"))


def _render_split(
    folder: Path,
    split: str,
    num_videos: int,
    num_frames: int,
    size: tuple[int, int],
    fps: int,
    seed: int,
    first: int,
) -> list[Video]:
    """Renders the videos of a split, numbered from ``first``, and writes its JSON."""
    height, width = size
    narrow = max(64, round(width * 3 / 8) * 2)
    videos, images_of, annotations_of = [], [], []
    for index in range(num_videos):
        theme = THEMES[index % len(THEMES)]
        name = f"{theme.name}_{first + index:03d}"
        shape = (height, width if index % 2 == 0 else narrow)
        void = height // 60 + 2 if index % VOID_EVERY == VOID_EVERY - 1 else 0
        scene = Scene(shape, theme, num_frames / fps, void, [seed, first + index])
        frames = [scene.frame(number / fps) for number in range(num_frames)]
        path = folder / "videos" / split / f"{name}.mp4"
        write_video(path, (frame.image for frame in frames), fps)
        images, annotations = write_labels(folder / "panoptic" / split / name, frames)
        images_of.append({"video_id": name, "images": images})
        annotations_of.append({"video_id": name, "annotations": annotations})
        videos.append(
            Video(
                id=name,
                path=path.relative_to(folder).as_posix(),
                kind="video",
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                split=split,
                num_frames=num_frames,
                height=shape[0],
                width=shape[1],
            )
        )
    # VIPSeg writes isthing as 0 or 1.
    categories = [{**c.model_dump(mode="json"), "isthing": int(c.isthing)} for c in CATEGORIES]
    table = {"videos": images_of, "annotations": annotations_of, "categories": categories}
    (folder / f"panoptic_{split}.json").write_text(json.dumps(table), encoding="utf-8")
    return videos


class Scene:
    """One video to be: a landscape, a camera path, and sprites crossing it.

    Args:
        size: (height, width), pixels.
        theme: The landscape's colours.
        seconds: How long the video lasts; paths are laid out so that things come and go in it.
        void: Width of the unlabelled border, pixels.
        seed: Everything random follows from it.
    """

    def __init__(
        self, size: tuple[int, int], theme: Theme, seconds: float, void: int, seed: list[int]
    ) -> None:
        rng = np.random.default_rng(seed)
        self.height, self.width = size
        self.theme, self.seconds, self.void = theme, seconds, void
        self.landscape = Landscape(self.height, self.width, theme, rng)
        self.horizon = float(rng.uniform(0.40, 0.47)) * self.height
        self.pan = float(rng.choice([-1, 1]) * rng.uniform(0.25, 0.6))
        self.seed = seed
        trees = [self._tree(rng, index) for index in range(9)]
        trees = [tree for tree in trees if self.landscape.dry(tree.x, tree.nearness)]
        kinds = rng.permutation([Kind.BALL, Kind.BOX, Kind.STAR, Kind.RING]).tolist()
        kinds.append(int(rng.choice(kinds)))
        paints = rng.permutation(len(PAINTS))
        things = [
            self._thing(Kind(kind), PAINTS[paints[number]], rng)
            for number, kind in enumerate(kinds)
        ]
        # Painted from far to near; a mark is an index into this list.
        self.sprites = sorted([*trees, *things], key=lambda sprite: sprite.nearness)
        self.ids = _segment_ids(self.sprites)

    def frame(self, seconds: float) -> RenderedFrame:
        """Renders the frame shown at a time, in any order."""
        camera = self._camera(seconds)
        picture, kinds = self.landscape.paint(camera, seconds)
        marks = kinds.astype(np.int32)
        for index, sprite in enumerate(self.sprites):
            pose = sprite.pose(seconds, camera, self.height, self.width)
            draw(sprite, pose, picture, marks, len(Kind) + index, self.landscape.rough)
        ids = self.ids[marks]
        if self.void:
            ids[: self.void], ids[-self.void :] = 0, 0
            ids[:, : self.void], ids[:, -self.void :] = 0, 0
        return RenderedFrame(self._finish(picture, seconds), ids, self._categories(ids))

    def _camera(self, seconds: float) -> Camera:
        share = seconds / self.seconds
        bob = 0.008 * self.height * np.sin(2 * np.pi * share)
        return Camera(self.pan * (share - 0.5), float(self.horizon + bob))

    def _finish(self, picture: Array, seconds: float) -> NDArray[np.uint8]:
        """Adds the light of the day, a vignette and the camera's noise."""
        y = np.linspace(-1, 1, self.height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, self.width, dtype=np.float32)[None, :]
        vignette = 1 - 0.10 * (x * x + y * y)
        grain = np.random.default_rng([*self.seed, round(seconds * 1e6)])
        noise = grain.standard_normal((self.height, self.width, 1), np.float32) * 0.008
        lit = picture * self.theme.light * vignette[..., None] + noise
        return (np.clip(lit, 0, 1) * 255 + 0.5).astype(np.uint8)

    def _categories(self, ids: NDArray[np.int32]) -> dict[int, int]:
        kinds = [*Kind, *(sprite.kind for sprite in self.sprites)]
        of_id = dict(zip(self.ids.tolist(), (int(kind) for kind in kinds), strict=True))
        return {number: of_id[number] for number in np.unique(ids).tolist() if number}

    def _tree(self, rng: np.random.Generator, index: int) -> Sprite:
        nearness = float(rng.uniform(0.10, 0.40))
        reach = self.width / self.height / 2 / nearness
        return Sprite(
            Kind.TREE,
            (self.theme.leaf * rng.uniform(0.85, 1.15)).astype(np.float32),
            nearness,
            float(rng.uniform(0.30, 0.46)),
            float(reach * (-1.1 + 2.2 * (index + rng.uniform(0.1, 0.9)) / 9)),
            seed=float(rng.uniform()),
        )

    def _thing(self, kind: Kind, paint: Array, rng: np.random.Generator) -> Sprite:
        """Lays a path that is inside the picture at some time and may start or end outside."""
        nearness = float(rng.uniform(0.42, 0.88))
        half = self.width / self.height / 2 / nearness
        seen_at = float(rng.uniform(0.25, 0.75)) * self.seconds
        seen_x = float(rng.uniform(-0.6, 0.6)) * half
        speed = float(rng.choice([-1, 1]) * rng.uniform(0.4, 1.5)) * half / self.seconds
        radius = float(rng.uniform(0.15, 0.21))
        flies = kind is Kind.STAR
        rolls = speed / radius if kind in (Kind.BALL, Kind.RING) else 0.0
        return Sprite(
            kind,
            paint,
            nearness,
            radius,
            seen_x + self._camera(seen_at).x - speed * seen_at,
            speed,
            hop={Kind.BALL: 1.6, Kind.STAR: 0.5}.get(kind, 0.0),
            lift=float(rng.uniform(0.9, 2.2)) if flies else 0.0,
            period=self.seconds * float(rng.uniform(0.35, 0.6)),
            phase=float(rng.uniform()),
            spin=float(rng.uniform(1.5, 3.0)) / self.seconds if flies or not rolls else rolls,
            seed=float(rng.uniform()),
        )


def _segment_ids(sprites: list[Sprite]) -> NDArray[np.int32]:  # [kinds + sprites]
    """Returns the panoptic id of every mark, near its category's colour so that PNGs read well.

    Trees are stuff: all of them share one segment.
    """
    colors = {Kind(category.id): category.color for category in CATEGORIES}
    ids = {kind: _id_of(color) for kind, color in colors.items()}
    marks = [ids[kind] for kind in Kind]
    for number, sprite in enumerate(sprites):
        red, green, blue = colors[sprite.kind]
        near = (red - 3 * number, green, blue + number + 1)
        marks.append(ids[sprite.kind] if sprite.kind is Kind.TREE else _id_of(near))
    return np.array(marks, np.int32)


def _id_of(color: tuple[int, int, int]) -> int:
    return color[0] + 256 * color[1] + 65536 * color[2]
