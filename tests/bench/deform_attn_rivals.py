"""What the fused op is timed against, at which shapes and with which inputs.

Shape letters: ``B`` images, ``S`` cells of all levels, ``H`` heads, ``D`` channels of a head, ``Q``
queries, ``L`` levels, ``P`` points.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fcache.errors import KernelError
from fcache.ops import build, ms_deform_attn

Call = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # value, reference, offsets, logits -> out


@dataclass(frozen=True)
class Shape:
    """One use of the op: which levels are read, from which grids the queries are."""

    name: str
    levels: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int], ...]
    heads: int
    head_dim: int
    points: int = 4

    @property
    def cells(self) -> int:
        return sum(h * w for h, w in self.levels)

    @property
    def queries(self) -> int:
        return sum(h * w for h, w in self.grids)

    @property
    def samples(self) -> int:
        """Of one image: bilinear reads of D channels."""
        return self.queries * self.heads * len(self.levels) * self.points


def shapes(px: int) -> list[Shape]:
    """The pixel decoder's and, for ViT-g, the adapter's extractor and injector, of square crops."""
    side = -(-px // 32)
    pyramid = tuple((side * k, side * k) for k in (4, 2, 1))
    return [
        Shape("pixel decoder", pyramid, pyramid, 8, 32),
        Shape("extractor", pyramid[1:2], pyramid, 24, 64),
        Shape("injector", pyramid, pyramid[1:2], 24, 64),
    ]


def make_inputs(shape: Shape, batch: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Value, reference points, offsets (the module's own fan of directions and a pixel of noise)
    and logits."""
    draw = torch.Generator().manual_seed(0)
    angles = torch.arange(shape.heads) * (2 * torch.pi / shape.heads)
    fan = torch.stack((angles.cos(), angles.sin()), -1)
    fan = (fan / fan.abs().amax(-1, keepdim=True))[:, None, None]
    fan = fan * torch.arange(1, shape.points + 1)[:, None]  # [H, 1, P, 2]
    sizes = (batch, shape.queries, shape.heads, len(shape.levels), shape.points)
    offsets = fan + torch.randn(*sizes, 2, generator=draw)
    logits = torch.randn(*sizes, generator=draw).flatten(3)
    value = torch.randn(batch, shape.cells, shape.heads, shape.head_dim, generator=draw)
    rows = []
    for height, width in shape.grids:
        y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
        rows.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2))
    reference = torch.cat(rows)[None, :, None]
    return [
        value.to(device, dtype),
        reference.to(device),
        offsets.to(device, dtype),
        logits.to(device, dtype),
    ]


@dataclass(frozen=True)
class Rival:
    """One way to compute the op."""

    call: Call
    deterministic: bool = False

    def forward(self, inputs: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return self.call(*inputs)

    def both(self, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        """Forward and backward; returns the gradients of value, offsets and logits."""
        value, points, offsets, logits = inputs
        leaves = [tensor.detach().requires_grad_() for tensor in (value, offsets, logits)]
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            out = self.call(leaves[0], points, leaves[1], leaves[2])
            return torch.autograd.grad(out, leaves, grad)
        finally:
            torch.use_deterministic_algorithms(False)


def fused(shape: Shape) -> Call:
    def call(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ms_deform_attn(value, shape.levels, points, offsets, logits)

    return call


def locations_of(shape: Shape, reference: Tensor, offsets: Tensor) -> Tensor:
    sizes = torch.tensor([(w, h) for h, w in shape.levels], device=offsets.device)
    return reference[:, :, None, :, None].to(offsets.dtype) + offsets / sizes[:, None]


def eager(shape: Shape, safe: bool) -> Call:
    """The chain of ``grid_sample`` that projects fall back to.

    As they write it, in the dtype of its inputs, or ``safe``: float32 inside and contiguous maps,
    which half precision needs on a CPU.
    """

    def call(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        dtype = value.dtype
        if safe:
            value, offsets, logits = value.float(), offsets.float(), logits.float()
        batch, queries, heads, samples = logits.shape
        weights = logits.softmax(-1).transpose(1, 2).reshape(batch * heads, 1, queries, samples)
        grid = 2 * locations_of(shape, reference, offsets) - 1
        read, first = [], 0
        for level, (height, width) in enumerate(shape.levels):
            cells = value[:, first : first + height * width].permute(0, 2, 3, 1)
            first += height * width
            cells = cells.reshape(batch * heads, shape.head_dim, height, width)
            at = grid[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, -1, 2)
            read.append(
                F.grid_sample(cells.contiguous() if safe else cells, at, align_corners=False)
            )
        out = (torch.stack(read, -2).flatten(-2) * weights).sum(-1)
        out = out.view(batch, heads * shape.head_dim, queries).transpose(1, 2)
        return out.contiguous().to(dtype)

    return call


def build_unfused(folder: Path) -> None:
    """Compiles and loads ``unfused_chain.cu`` as ``torch.ops.fcache_unfused``.

    Raises:
        KernelError: There is no CUDA compiler, or it fails.
    """
    target, compiler = build.TARGETS["cuda"], build.find_compiler("cuda")
    out = folder / "unfused_chain.so"
    words = build.command(target, compiler, out, build.default_archs())
    at = words.index(str(build.source_folder() / target.source))
    words[at] = str(Path(__file__).with_name("unfused_chain.cu"))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"unfused_chain.cu does not compile: {done.stderr[-2000:]}")
    torch.ops.load_library(out)


class _Sampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return torch.ops.fcache_unfused.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.ops.fcache_unfused.backward(grad.contiguous(), *ctx.saved_tensors)
        return found[0], None, None, found[1], found[2]


def unfused(shape: Shape, device: str) -> Call:
    """The chain around a kernel with a thread per channel, in float32 as under autocast."""
    levels = torch.tensor(shape.levels, device=device)
    areas = levels.prod(1)
    starts = areas.cumsum(0) - areas

    def call(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.float().softmax(-1).view(offsets.shape[:-1])
        locations = locations_of(shape, reference, offsets.float())
        out: Tensor = _Sampling.apply(value.float(), levels, starts, locations, weights)
        return out.to(value.dtype)

    return call
