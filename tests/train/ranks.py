"""What each of several processes does in the tests of distributed training.

``python -m tests.train.ranks OUT CACHE`` with torchrun's variables; a rank saves what it found as
``OUT/<rank>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from fcache.train.distributed import World, joined
from fcache.train.optimizer import MultiStep
from fcache.train.step import NotFiniteError, TrainStep
from fcache.train.synced_norm import SyncedBatchNorm2d
from tests.train.making import train
from tests.train.memory import clip, joined_clips, sgd, stage

NUM_CLIPS = 4
WHOLE_RUN: dict[str, Any] = {"steps": 2, "batch": 2}


def norm_inputs() -> list[torch.Tensor]:
    """Maps of two ranks that differ in size; channels with a mean far from zero."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4, 5), (1, 3, 2, 6))
    return [100 + torch.randn(shape, generator=generator) for shape in shapes]


def norm_weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(maps.shape, generator=generator) for maps in norm_inputs()]


def make_norm() -> SyncedBatchNorm2d:
    norm = SyncedBatchNorm2d(3)
    torch.nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(2))
    return norm


def run_norm(world: World) -> dict[str, Any]:
    norm = make_norm()
    maps = norm_inputs()[world.rank].requires_grad_()
    out = norm(maps)
    (out * norm_weights()[world.rank]).sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return {
        "out": out.detach(),
        "by_input": maps.grad,
        "by_weight": norm.weight.grad,
        "by_bias": norm.bias.grad,
        "buffers": dict(norm.named_buffers()),
    }


def run_step(world: World) -> dict[str, Any]:
    """One SGD step on four clips of different numbers of segments, in micro-batches."""
    clips = [clip(number, num_segments=1 + number) for number in range(NUM_CLIPS)]
    size = 2 // world.size
    groups = [joined_clips(clips[i : i + size]) for i in range(0, NUM_CLIPS, size)]
    trained = stage()
    step = TrainStep(trained, sgd(trained), MultiStep((), 0.1), clip_norm=5.0, world=world)
    result = step(0, groups[world.rank :: world.size], stop=world.rank == world.size - 1)
    return {
        "losses": result.losses,
        "grad_norm": result.grad_norm,
        "stopped": result.stopped,
        "gradients": {n: p.grad for n, p in trained.module.named_parameters()},
        "state": trained.module.state_dict(),
    }


def run_nan(world: World) -> dict[str, Any]:
    """The last rank's clip is not finite."""
    clips = [clip(number) for number in range(2)]
    clips[-1].stages[2][0, 0, 0, 0] = float("nan")
    trained = stage()
    before = {n: t.clone() for n, t in trained.module.named_parameters()}
    try:
        TrainStep(trained, sgd(trained), MultiStep((), 0.1), world=world)(
            5, clips[world.rank :: world.size]
        )
    except NotFiniteError as error:
        kept = all(torch.equal(before[n], p) for n, p in trained.module.named_parameters())
        return {"message": error.message, "kept": kept}
    return {}


def main() -> None:
    out, cache = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    with joined("cpu") as world:
        found = {"norm": run_norm(world), "step": run_step(world), "nan": run_nan(world)}
        events: list[dict[str, Any]] = []
        result = train(cache, out / "run", report=events.append, **WHOLE_RUN, micro_batch=1)
        found["run"] = {"result": result.to_json(), "events": events}
        torch.save(found, out / f"{world.rank}.pt")


if __name__ == "__main__":
    main()
