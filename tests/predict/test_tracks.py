"""Tracks of a video: two passes, in bounded memory."""

from __future__ import annotations

import pytest
import torch

from fcache.models.predictions import FrameOutput, Prediction
from fcache.predict.tracks import Tracks

Q, K, C, SIDES = 6, 3, 8, (4, 5)


def window(first: int, num_frames: int) -> FrameOutput:
    """Outputs that are a function of the frames' numbers; queries move to another place."""
    parts = []
    for frame in range(first, first + num_frames):
        generator = torch.Generator().manual_seed(frame)
        order = torch.randperm(Q, generator=generator)
        parts.append(
            (
                torch.eye(Q, C)[order] + 0.1 * torch.randn(Q, C, generator=generator),
                (torch.arange(Q)[:, None] * torch.ones(K + 1))[order],
                (torch.arange(Q)[:, None, None] + torch.zeros(Q, *SIDES) + 100 * frame)[order],
            )
        )
    queries, logits, masks = (torch.stack(one) for one in zip(*parts, strict=True))
    return FrameOutput(Prediction(logits, masks), (), queries, queries, None, masks[:, :1])


def seen(num_frames: int, num_held: int, size: int = 3) -> tuple[Tracks, list[FrameOutput]]:
    tracks = Tracks(num_held)
    outputs = [window(first, min(size, num_frames - first)) for first in range(0, num_frames, size)]
    for output in outputs:
        tracks.see(output)
    return tracks, outputs


def test_held_masks_are_those_of_a_second_prediction() -> None:
    tracks, outputs = seen(8, num_held=8)
    again = [tracks.masks(number, output) for number, output in enumerate(outputs)]
    held = list(tracks.held())
    assert [part.shape[1] for part in held] == [3, 3, 2]
    assert all(torch.equal(one, other) for one, other in zip(held, again, strict=True))
    first = window(0, 1).final.mask_logits[0]
    moved = torch.cat(held, 1) - 100 * torch.arange(8)[:, None, None]
    assert torch.equal(moved, first[:, None].expand_as(moved)), "a track keeps its query's masks"


def test_memory_for_masks_does_not_grow_with_the_video() -> None:
    short, long = (seen(num_frames, num_held=6)[0] for num_frames in (6, 60))
    assert short.held_bytes == long.held_bytes == 6 * Q * SIDES[0] * SIDES[1] * 4
    assert len(list(long.held())) == 2
    assert long.held_bytes == 0


def test_a_tracks_category_is_that_of_its_mean_logits_over_all_windows() -> None:
    tracks, _ = seen(5, num_held=0)
    assert torch.equal(tracks.classes(), torch.full((Q, K + 1), 0.25))
    tracks = Tracks(0)
    one, two = window(0, 1), window(0, 1)
    two.final.class_logits[:, 0] += torch.tensor([3.0, 0.0, 0.0, -1.0])
    for output in (one, two):
        tracks.see(output)
    mean = (one.final.class_logits[0, 0] + two.final.class_logits[0, 0]) / 2
    torch.testing.assert_close(tracks.classes()[0], mean.softmax(0))


def test_without_a_frame_there_is_no_category() -> None:
    with pytest.raises(ValueError, match="no frame"):
        Tracks(0).classes()
