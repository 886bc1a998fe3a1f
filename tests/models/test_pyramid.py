from __future__ import annotations

import pytest
import torch

from fcache.models.pyramid import PyramidAdapter

CHANNELS = (8, 16, 24, 40)


def outputs(sides=(16, 8, 4, 2), channels=CHANNELS):
    return [torch.randn(2, s, s + s // 2, c) for s, c in zip(sides, channels, strict=True)]


def test_outputs_go_through_channels_first_without_a_copy() -> None:
    adapter = PyramidAdapter(CHANNELS)
    given = outputs()
    for level, output in zip(adapter(given), given, strict=True):
        assert torch.equal(level, output.permute(0, 3, 1, 2))
        assert level.data_ptr() == output.data_ptr()
    assert not list(adapter.parameters())


def test_other_channels_or_sizes_are_told_with_what_was_expected() -> None:
    adapter = PyramidAdapter(CHANNELS)
    with pytest.raises(ValueError, match=r"expected \[\(2, 16, 24, 8\)"):
        adapter(outputs(channels=(8, 16, 24, 41)))
    with pytest.raises(ValueError, match="stage outputs are"):
        adapter(outputs(sides=(16, 8, 4, 4)))
    with pytest.raises(ValueError, match="expected four"):
        PyramidAdapter((8, 16, 24))
