"""What a producer hands to the writer: the arrays of a batch, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Produced:
    """Stage outputs of a batch, on the host, in the stored type.

    Attributes:
        arrays: By array of the view, its chunks of a row, each ``[B, h, w, C]`` (bfloat16 as its
            bits in uint16). A plain ViT has ``tokens`` with S of them, a pyramid ``stage0``,
            ``stage1``.. with one each. int8 adds ``scale``, or ``scale0``.., ``[B, h, w]`` float16.
        largest: ``[B, S]`` float64, the largest magnitude before the cast; NaN where there is one.
        errors: ``[B, S, K]`` float64, what int8 cost: the columns of ``precision.ERROR_COLUMNS``,
            to be merged by ``precision.merge_errors``. None for the other types.
    """

    arrays: Mapping[str, list[Array]]
    largest: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64] | None = None


def joined(pieces: Sequence[Produced]) -> Produced:
    """Returns the pieces of a batch as one, in their order."""
    if len(pieces) == 1:
        return pieces[0]
    arrays = {
        name: [
            np.concatenate(chunks) for chunks in zip(*(p.arrays[name] for p in pieces), strict=True)
        ]
        for name in pieces[0].arrays
    }
    errors = [piece.errors for piece in pieces if piece.errors is not None]
    return Produced(
        arrays,
        np.concatenate([piece.largest for piece in pieces]),
        np.concatenate(errors) if errors else None,
    )


def to_host(stage: torch.Tensor) -> Array:
    """Returns a stage output on the host; bfloat16 as its bits in uint16."""
    host = stage.contiguous().cpu()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(np.uint16)
    return host.numpy()
