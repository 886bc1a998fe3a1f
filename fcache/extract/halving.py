"""Batches on a device whose memory may not hold them: halved until they fit, and remembered."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from fcache.errors import ConfigError
from fcache.report import Report

T = TypeVar("T")

# What PyTorch's allocators and the libraries below it say; on a CPU there is no class for it.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# oneDNN's whole message, whatever the cause; a failed allocation is the usual one.
PERHAPS = ("could not create a primitive", "could not execute a primitive")


class Halving:
    """Runs batches whole, or in the largest pieces that have fitted.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._limits: dict[str, int] = {}

    def run(
        self, canvas: str, count: int, compute: Callable[[slice], T], report: Report
    ) -> list[T]:
        """Returns what ``compute`` returns for the pieces of a batch, in order.

        A batch that does not fit starts again in pieces of the next smaller power of two, so that
        its result is that of the smaller batch throughout.

        Args:
            canvas: What memory depends on besides the number of frames; limits are kept by it.
            count: Frames of the batch.
            compute: Takes the piece.
            report: Told ``{"event": "halved", "batch": n, "canvas": canvas}``.

        Raises:
            ConfigError: one frame alone does not fit.
        """
        while True:
            size = max(1, min(count, self._limits.get(canvas, count)))
            pieces, reason = _attempt(count, size, compute)
            if pieces is not None:
                return pieces
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if size == 1:
                raise ConfigError(
                    f"one frame on a canvas of {canvas} does not fit the memory of "
                    f"'{self._device}' ({reason}); expected a smaller short_side= or size=, "
                    f"compute_dtype=bfloat16, a smaller model=, or a device with more free memory."
                )
            self._limits[canvas] = 1 << (size - 1).bit_length() - 1
            report({"event": "halved", "batch": self._limits[canvas], "canvas": canvas})


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error is a failed allocation, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


def _attempt(count: int, size: int, compute: Callable[[slice], T]) -> tuple[list[T] | None, str]:
    """The pieces, or None and why.

    The error is let go of on return: its traceback holds the tensors that have to make room.
    """
    try:
        starts = range(0, count, size)
        return [compute(slice(start, min(start + size, count))) for start in starts], ""
    except (RuntimeError, MemoryError) as error:
        perhaps = size > 1 and any(sign in str(error) for sign in PERHAPS)
        if not (perhaps or is_out_of_memory(error)):
            raise
        return None, str(error).strip().partition("\n")[0][:200] or type(error).__name__
