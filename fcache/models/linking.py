"""Tracks of queries from frame to frame, as MinVIS links frames that were segmented one by one."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class QueryLinker:
    """Says which query of each frame goes on with which track; clips come one after another.

    The queries of the first frame are the tracks. Those of a later frame are assigned to them so
    that the cosine distances between the embeddings of a track and of the frame before sum up to
    the least.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None  # [Q, C] of the frame before, in track order, unit length

    def link(
        self,
        embeddings: Tensor,  # [C, T, Q] after the decoder's norm
    ) -> Tensor:  # [T, Q] int64 on the CPU
        """Returns the query of each track in each frame of the video's next clip.

        Raises:
            ValueError: an embedding is not finite.
        """
        frames = embeddings.permute(1, 2, 0).float()
        frames = frames / frames.norm(dim=-1, keepdim=True)
        return torch.stack([self._follow(frame) for frame in frames])

    def _follow(self, frame: Tensor) -> Tensor:  # [Q, C] -> [Q]
        if self._last is None:
            order = torch.arange(len(frame))
        else:
            distances = 1 - self._last @ frame.T
            order = torch.from_numpy(linear_sum_assignment(distances.cpu().numpy())[1])
        self._last = frame[order.to(frame.device)]
        return order


def in_track_order(
    values: Tensor,  # [T, Q, ...]
    order: Tensor,  # [T, Q] as ``QueryLinker.link`` gives it
) -> Tensor:  # [T, Q, ...]
    """Returns values of queries by track."""
    rows = torch.arange(len(order), device=values.device)[:, None]
    return values[rows, order.to(values.device)]
