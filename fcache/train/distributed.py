"""Several processes that train one model: who they are, and what they tell each other.

``torchrun`` starts them; without it there is one. Processes on CPUs talk through gloo, on GPUs
through NCCL.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fcache.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """The ranks that train together, as one of them sees them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over ranks; ``values`` may lie anywhere, the sum lies on the device."""
        total = values.detach().to(self.device, copy=True)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, told: str) -> list[str]:
        """Returns what every rank tells, by rank."""
        if self.size == 1:
            return [told]
        everything: list[str] = [""] * self.size
        dist.all_gather_object(everything, told)
        return everything

    def agree(self) -> None:
        """Waits until every rank is here."""
        self.gather("")

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns a module whose gradients are averaged over ranks; alone, the module itself."""
        if self.size == 1:
            return module
        # Synced norms have the same buffers on all ranks already.
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Its successor came with torch 2.15; this name serves every version.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Returns a context in which gradients stay on their rank, unless it is the last pass."""
        if isinstance(model, DistributedDataParallel) and not last:
            held: AbstractContextManager[None] = model.no_sync()
            return held
        return nullcontext()


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Returns the device to train on: ``auto`` is this rank's GPU, or the CPU where there is none.

    Raises:
        ConfigError: no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(
            f"device={wanted} is no device; expected auto, cpu, cuda or cuda:N."
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device={wanted}, and no GPU is there; expected auto or cpu.")
        return torch.device("cuda", local_rank if device.index is None else device.index)
    return device


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Joins the ranks that ``torchrun`` started, for as long as the context lasts.

    A process group that exists already is used, and left.

    Raises:
        ConfigError: no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    at = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if at.type == "cuda":
        torch.cuda.set_device(at)
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), at)
        return
    if size == 1:
        yield World(device=at)
        return
    dist.init_process_group("nccl" if at.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size, at)
    finally:
        dist.destroy_process_group()
