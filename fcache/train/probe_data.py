"""What the linear probe keeps of its training frames, and how it draws batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fcache.config import ProbeConfig
from fcache.errors import ConfigError, FeatureError

IGNORE = 255
Size = tuple[int, int]


class ProbeFrames(Protocol):
    """Frames with stage outputs and labels; the frames may differ in size."""

    def __len__(self) -> int:
        """The number of frames."""
        ...

    def stages(self, index: int) -> list[NDArray[np.floating]]:
        """The stage outputs of a frame, each [h, w, C]."""
        ...

    def label(self, index: int) -> NDArray[np.uint8]:
        """The categories [height, width] of the padded canvas; 255 is ignored, as is padding."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeProgress:
    """Where ``train_probe`` stands: ``done`` of ``total`` frames read, or steps fitted."""

    part: Literal["read", "fit"]
    done: int
    total: int
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class KeptFrame:
    """What training keeps of one frame."""

    stages: list[Tensor]  # [h, w, C] each, no finer than the grid
    pixels: Tensor  # [H, W, K] int16, labelled pixels of each category in a grid cell

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return self.pixels.nbytes + sum(stage.nbytes for stage in self.stages)


class Moments:
    """Sums over tokens of one stage, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, tokens: Tensor) -> None:  # [N, C]
        """Counts tokens in."""
        tokens = tokens.double()
        self.count += len(tokens)
        self.total += tokens.sum(0)
        self.squares += tokens.square().sum(0)

    @property
    def finite(self) -> bool:
        """False once a token with an infinite value or a NaN was counted."""
        return bool(torch.isfinite(self.squares).all())

    def mean_std(self) -> tuple[Tensor, Tensor]:  # [C], [C]
        """Returns the mean and the standard deviation of every channel, float32."""
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        # A constant channel says nothing; dividing by one keeps it at zero.
        return mean.float(), torch.where(std > 1e-6, std, 1.0).float()


def read_frames(
    train: ProbeFrames,
    config: ProbeConfig,
    num_categories: int,
    rng: np.random.Generator,
    report: Callable[[ProbeProgress], None],
) -> tuple[list[KeptFrame], list[Moments]]:
    """Returns the frames that training keeps, and the moments of each stage over them.

    Raises:
        ConfigError: a label outside 0..K-1, or no labelled pixel at all.
        FeatureError: a stage output that is not finite.
    """
    order = rng.permutation(len(train))[: config.steps * config.batch]
    kept: list[KeptFrame] = []
    moments: list[Moments] = []
    held = 0
    for done, index in enumerate(order.tolist(), 1):
        label = train.label(index)
        pixels = _cell_pixels(label, grid_of(label.shape, config.stride), num_categories, index)
        report(ProbeProgress("read", done, len(order)))
        if not pixels.any():
            continue
        stages = [_averaged(as_tensor(stage), pixels.shape) for stage in train.stages(index)]
        frame = KeptFrame([_halved(stage) for stage in stages], pixels)
        held += frame.num_bytes
        if held > config.memory_bytes and kept:
            break
        kept.append(frame)
        moments = moments or [Moments(stage.shape[-1]) for stage in stages]
        for moment, stage in zip(moments, stages, strict=True):
            moment.add(stage[_labelled_tokens(label, stage.shape)])
        if not all(moment.finite for moment in moments):
            raise FeatureError(f"training frame {index} has stage outputs that are not finite.")
    if not kept:
        raise ConfigError(
            f"none of {len(order)} training frames has a labelled pixel; "
            f"expected labels 0..{num_categories - 1} besides {IGNORE} for void."
        )
    return kept, moments


class Batches:
    """Draws frames of one geometry, each geometry in proportion to its frames."""

    def __init__(self, frames: list[KeptFrame], batch: int, rng: np.random.Generator) -> None:
        self.batch = batch
        self.rng = rng
        groups: dict[object, list[KeptFrame]] = {}
        for frame in frames:
            shapes = tuple(tuple(m.shape) for m in (*frame.stages, frame.pixels))
            groups.setdefault(shapes, []).append(frame)
        self.groups = list(groups.values())
        self.share = np.array([len(group) for group in self.groups]) / len(frames)
        self.queues: list[list[int]] = [[] for _ in self.groups]

    def draw(self) -> list[KeptFrame]:
        """Returns ``batch`` frames; each frame of a geometry comes once before any comes again."""
        which = int(self.rng.choice(len(self.groups), p=self.share))
        group, queue = self.groups[which], self.queues[which]
        while len(queue) < self.batch:
            queue.extend(self.rng.permutation(len(group)).tolist())
        chosen = [group[index] for index in queue[: self.batch]]
        del queue[: self.batch]
        return chosen


def as_tensor(stage: NDArray[np.floating]) -> Tensor:
    """Returns a stage output as float32, its own copy."""
    return torch.from_numpy(np.array(stage, np.float32, order="C"))


def grid_of(size: Sequence[int], stride: int) -> Size:
    """Returns the (H, W) of the logits of a canvas of (height, width)."""
    return max(1, round(size[0] / stride)), max(1, round(size[1] / stride))


def resample(maps: Tensor, grid: Size) -> Tensor:
    """Averages where the grid is coarser and interpolates where it is finer."""
    if maps.shape[-2] > grid[0] or maps.shape[-1] > grid[1]:
        return F.adaptive_avg_pool2d(maps, grid)
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)


def _averaged(stage: Tensor, grid: Sequence[int]) -> Tensor:
    """Returns a stage no finer than the grid."""
    height, width, channels = stage.shape
    if height <= grid[0] and width <= grid[1]:
        return stage
    down, across = height // grid[0], width // grid[1]
    if (down * grid[0], across * grid[1]) == (height, width):
        # Adding slices keeps channels innermost, several times faster than adaptive pooling.
        cells = stage.view(grid[0], down, grid[1], across, channels)
        parts = [cells[:, i, :, j] for i in range(down) for j in range(across)]
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total / len(parts)
    return resample(stage.permute(2, 0, 1)[None], (grid[0], grid[1]))[0].permute(1, 2, 0)


def _halved(stage: Tensor) -> Tensor:
    """Returns a stage as float16, or as it is where values are outside float16's range."""
    half = stage.half().contiguous()
    return stage.contiguous() if bool(half.isinf().any()) else half


def _cell_index(size: int, cells: int) -> NDArray[np.int64]:
    return np.arange(size, dtype=np.int64) * cells // size


def _cell_pixels(
    label: NDArray[np.uint8], grid: Size, num_categories: int, index: int
) -> Tensor:  # [H, W, K]
    """Counts the pixels of every category in every grid cell."""
    wrong = label[(label >= num_categories) & (label != IGNORE)]
    if wrong.size:
        raise ConfigError(
            f"training frame {index} holds label {int(wrong[0])}; "
            f"expected 0..{num_categories - 1}, or {IGNORE} for void."
        )
    rows = _cell_index(label.shape[0], grid[0])[:, None]
    columns = _cell_index(label.shape[1], grid[1])[None, :]
    cells = (rows * grid[1] + columns) * num_categories + label
    counts = np.bincount(cells[label != IGNORE], minlength=grid[0] * grid[1] * num_categories)
    return torch.from_numpy(counts.reshape(*grid, num_categories).astype(np.int16))


def _labelled_tokens(label: NDArray[np.uint8], shape: Sequence[int]) -> Tensor:  # [h, w] bool
    """Returns which tokens cover a labelled pixel."""
    labelled = label != IGNORE
    for axis in (0, 1):
        # Cells start where the index of _cell_index changes.
        starts = -(-np.arange(shape[axis]) * label.shape[axis] // shape[axis])
        labelled = np.logical_or.reduceat(labelled, starts, axis=axis)
    return torch.from_numpy(labelled)
