from __future__ import annotations

import pytest
import torch

from fcache.models.points import (
    SeededDraw,
    sample_logits,
    sample_masks,
    uncertain_points,
)


def test_a_point_at_a_cell_centre_reads_the_cell_and_outside_reads_zero() -> None:
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.0, 0.25]]])
    assert sample_logits(maps, points).tolist() == [[1.0, 2.0, 2.5, 0.5]]
    assert sample_masks(maps, points).tolist() == [[1.0, 2.0, 2.5, 0.5]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize("shared", [True, False])
def test_masks_are_read_as_grid_sample_reads_their_floats(dtype, shared) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(3, 13, 9, generator=generator) > 0.5).to(dtype)
    points = torch.rand(1 if shared else 3, 200, 2, generator=generator)
    expected = sample_logits(masks.float(), points)
    torch.testing.assert_close(sample_masks(masks, points), expected, atol=1e-5, rtol=0)


def test_shared_points_read_what_repeated_points_read() -> None:
    maps, points = torch.randn(4, 6, 5), torch.rand(1, 30, 2)
    torch.testing.assert_close(
        sample_logits(maps, points), sample_logits(maps, points.expand(4, -1, -1))
    )


def test_no_masks_give_no_readings() -> None:
    assert sample_masks(torch.zeros(0, 8, 8, dtype=torch.bool), torch.rand(1, 5, 2)).shape == (0, 5)


def test_the_most_uncertain_candidates_are_kept_and_fresh_ones_follow() -> None:
    ramp = torch.linspace(-4, 4, 64).expand(1, 64, 64)  # zero in the middle column
    candidates = torch.rand(1, 90, 2)
    fresh = torch.rand(1, 3, 2)
    points = uncertain_points(ramp, candidates, fresh, 12)
    assert points.shape == (1, 12, 2)
    assert torch.equal(points[:, 9:], fresh)
    distance = (candidates[0, :, 0] - 0.5).abs().sort().values
    torch.testing.assert_close((points[0, :9, 0] - 0.5).abs().sort().values, distance[:9])


def test_seeded_numbers_depend_on_what_they_are_for_and_on_nothing_else() -> None:
    draw = SeededDraw(1, 2, ["video/3", "other/0"])
    first = draw("match", 0, 0, (1, 5, 2))
    draw("fresh", 4, 1, (7, 2, 2))
    assert torch.equal(draw("match", 0, 0, (1, 5, 2)), first)
    assert torch.equal(SeededDraw(1, 2, ["video/3"])("match", 0, 0, (1, 5, 2)), first)
    assert torch.equal(SeededDraw(1, 2, ["x", "video/3"])("match", 0, 1, (1, 5, 2)), first)
    others = [
        SeededDraw(2, 2, ["video/3"])("match", 0, 0, (1, 5, 2)),
        SeededDraw(1, 3, ["video/3"])("match", 0, 0, (1, 5, 2)),
        draw("match", 1, 0, (1, 5, 2)),
        draw("candidates", 0, 0, (1, 5, 2)),
        draw("match", 0, 1, (1, 5, 2)),
    ]
    assert not any(torch.equal(other, first) for other in others)
