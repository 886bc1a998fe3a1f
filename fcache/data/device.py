"""A clip's stage outputs on the device that uses them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fcache.data.dequantise import dequantise
from fcache.store.clip import Clip


def stages_on(
    clip: Clip, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:  # S of [T, h, w, C]
    """Returns a clip's wanted stage outputs on a device, in ``dtype``.

    They are moved as they are stored, so that int8 takes a quarter of the bytes of float32 on the
    way, and turned into ``dtype`` there. In float32 they equal ``Clip.floats``. On the CPU, a
    stage that is stored in ``dtype`` shares the clip's memory.
    """
    count = len(clip.stages)
    # A block holds all wanted stages, or each has its own. Moving blocks copies memory without
    # gaps, which a single stage of several in a block is not.
    num_blocks = 1 if clip.blocks[0].shape[1] == count else count
    values = _moved(clip.blocks[:num_blocks], device)
    if clip.logical_dtype == "int8":
        scales = _moved(clip.blocks[num_blocks : 2 * num_blocks], device)
        channels = [torch.from_numpy(scale).to(device) for scale in clip.channel_scales]
        stored = zip(values, scales, channels, strict=True)
        return [dequantise(stage, scale, channel, dtype) for stage, scale, channel in stored]
    if clip.logical_dtype == "bfloat16":
        values = [stage.view(torch.bfloat16) for stage in values]
    return [stage.to(dtype) for stage in values]


def _moved(blocks: tuple[np.ndarray, ...], device: torch.device | str) -> list[Tensor]:
    """Blocks ``[T, stages, ...]`` on a device, cut into their stages."""
    # torch has no arithmetic for uint16; int16 has the same bits.
    signed = [block.view(np.int16) if block.dtype == np.uint16 else block for block in blocks]
    moved = [torch.from_numpy(block).to(device, non_blocking=True) for block in signed]
    return [block[:, stage] for block in moved for stage in range(block.shape[1])]
