"""Memory that is used again and again for arrays of any shape."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

ALIGN_BYTES = 64


class Arena:
    """One piece of memory, out of which arrays are cut; it grows to the most that was ever needed.

    Args:
        pin_memory: Whether it is page-locked, which needs CUDA.
    """

    def __init__(self, *, pin_memory: bool = False) -> None:
        self._pin_memory = pin_memory
        self._memory = self._make(0)
        self._used = 0

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return len(self._memory)

    def reset(self) -> None:
        """Gives everything back: arrays that were taken before share memory with later ones."""
        if self._used > len(self._memory):
            self._memory = self._make(self._used)
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[np.generic]:
        """Returns an array in C order with any content."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        start = -(-self._used // ALIGN_BYTES) * ALIGN_BYTES
        self._used = start + size
        if self._used <= len(self._memory):
            memory = self._memory[start : self._used]
        else:
            # For this once: arrays that were taken hold on to the old memory until the reset.
            memory = self._make(size)
        return memory.view(kind).reshape(shape)

    def _make(self, size: int) -> npt.NDArray[np.uint8]:
        if not self._pin_memory:  # numpy asks for huge pages, torch does not
            memory = np.empty(size + ALIGN_BYTES, np.uint8)
            start = -memory.ctypes.data % ALIGN_BYTES
            return memory[start : start + size]
        made: npt.NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return made
