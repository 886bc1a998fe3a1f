"""What quantising cost: sums that add up over frames, shards and views, and the numbers in them.

numpy only, so that a command that reads commit records needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

# Per frame and stage, over the tokens that hold a valid pixel. ``x`` is a token's features, ``x^``
# what is read back, ``c`` the channel scales: dividing by them weighs every channel alike, so that
# a few massive ones cannot hide the others' error.
ERROR_COLUMNS = (
    "num_tokens",
    "signal",  # sum of |x|^2
    "noise",  # sum of |x - x^|^2
    "bulk_signal",  # sum of |x / c|^2
    "bulk_noise",  # sum of |(x - x^) / c|^2
    "cosine",  # sum of the cosines between x and x^
    "worst_token",  # largest |x - x^| / |x|
)
WORST = ERROR_COLUMNS.index("worst_token")


def merge_errors(
    parts: Iterable[npt.NDArray[np.float64]],  # each [..., S, K]
) -> npt.NDArray[np.float64]:  # [S, K]
    """Returns the error sums of several batches, shards or views as one.

    Every column adds up but the worst token, of which the largest stays.

    Raises:
        ValueError: there are no sums, or their columns are not ``ERROR_COLUMNS``.
    """
    rows = [np.asarray(part, np.float64) for part in parts]
    if not rows or any(row.shape[-1] != len(ERROR_COLUMNS) for row in rows):
        shapes = ", ".join(str(row.shape) for row in rows) or "none"
        raise ValueError(f"error sums of shape {shapes}; expected [..., S, {len(ERROR_COLUMNS)}]")
    stacked = np.concatenate([row.reshape(-1, *row.shape[-2:]) for row in rows])
    merged: npt.NDArray[np.float64] = stacked.sum(0)
    merged[:, WORST] = stacked[..., WORST].max(0)
    return merged


def describe_errors(
    sums: npt.NDArray[np.float64],  # [S, K]
) -> list[dict[str, float]]:
    """Returns, for each stage, the relative errors that its sums hold.

    ``relative_l2`` is |x - x^| / |x| over all tokens together, ``bulk_relative_l2`` the same with
    every channel divided by its scale, ``cosine`` the mean over tokens, ``worst_token`` the
    largest relative L2 of one token.
    """
    described = []
    for row in np.asarray(sums, np.float64):
        of = dict(zip(ERROR_COLUMNS, row.tolist(), strict=True))
        described.append(
            {
                "num_tokens": of["num_tokens"],
                "relative_l2": _ratio(of["noise"], of["signal"]) ** 0.5,
                "bulk_relative_l2": _ratio(of["bulk_noise"], of["bulk_signal"]) ** 0.5,
                "cosine": of["cosine"] / of["num_tokens"] if of["num_tokens"] else 1.0,
                "worst_token": of["worst_token"],
            }
        )
    return described


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
