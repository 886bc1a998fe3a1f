"""One head's tracks through one video: linked window after window, in two passes.

The category of a track is that of its mean logits over the whole video, and which queries compete
for pixels hangs on it: it has to be known before the first pixel is given away. The first pass
links queries and adds up logits. The second places masks: those of the first frames are held in
between, as many as the memory allows; the others are predicted again. A track of every frame takes
two bytes and is all that grows with a video's length.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fcache.models import FrameOutput
from fcache.models.linking import QueryLinker, in_track_order
from fcache.models.panoptic import class_probabilities


class Tracks:
    """The queries of one head in one video.

    Args:
        num_held: Frames whose masks are held: whole windows, the first ones.
    """

    def __init__(self, num_held: int) -> None:
        self.num_held = num_held
        self.num_frames = 0
        self._linker = QueryLinker()
        self._orders: list[Tensor] = []  # [T, Q] int16 of each window
        self._logits: Tensor | None = None  # [Q, K + 1] float64, summed over frames
        self._held: list[Tensor] = []

    @property
    def held_bytes(self) -> int:
        """Memory of the masks that are held."""
        return sum(masks.nbytes for masks in self._held)

    def see(self, output: FrameOutput) -> None:
        """Links the next window: the first pass."""
        num_frames = len(output.queries)
        clip = output.per_clip(num_frames)
        order = self._linker.link(clip.embeddings[0])
        logits = in_track_order(output.final.class_logits.double(), order).sum(0)
        self._logits = logits if self._logits is None else self._logits + logits
        self._orders.append(order.to(torch.int16))
        self.num_frames += num_frames
        if self.num_frames <= self.num_held:
            self._held.append(self._masks(output, order).cpu())

    def classes(self) -> Tensor:  # [Q, K + 1] float32
        """Returns the probabilities of every track's mean logits over all frames seen.

        Raises:
            ValueError: no frame was seen.
        """
        if self._logits is None:
            raise ValueError("no frame was seen; expected a window at least.")
        return class_probabilities((self._logits / self.num_frames).float())

    def held(self) -> Iterator[Tensor]:  # of [Q, T, h, w]
        """Yields the mask logits of the windows that are held, and lets go of them."""
        while self._held:
            yield self._held.pop(0)

    def masks(self, window: int, output: FrameOutput) -> Tensor:  # [Q, T, h, w]
        """Returns a window's mask logits by track, from a second prediction: the second pass.

        Args:
            window: Its number in the first pass.
            output: Of the same frames.
        """
        return self._masks(output, self._orders[window].long())

    @staticmethod
    def _masks(output: FrameOutput, order: Tensor) -> Tensor:
        return in_track_order(output.final.mask_logits, order).transpose(0, 1)
