from __future__ import annotations

import pytest
import torch

from fcache.models.positions import pixel_centres, sine_positions
from tests.models.vectors import close, load
from tests.shared import needs_shared


@needs_shared
@pytest.mark.parametrize(("name", "size"), [("2x3_N32", 64), ("5x7_N32", 64), ("4x6_N128", 256)])
def test_sine_positions_equal_the_official_ones(name, size) -> None:
    height, width = map(int, name.split("_")[0].split("x"))
    close(sine_positions(height, width, size), load("position_embedding_sine")[f"out/{name}"])


def test_rows_come_before_columns() -> None:
    positions = sine_positions(3, 4, 8)
    assert torch.equal(positions[0, :4, :, 0], positions[0, :4, :, 3])
    assert torch.equal(positions[0, 4:, 0], positions[0, 4:, 2])


def test_centres_are_row_major_x_first_level_after_level() -> None:
    centres = pixel_centres([(1, 2), (2, 1)])
    assert centres.shape == (1, 4, 1, 2)
    assert centres[0, :, 0].tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
