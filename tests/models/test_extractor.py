from __future__ import annotations

import pytest
import torch

from fcache.models.extractor import Extractor, join_scales, scale_grids, split_scales
from fcache.models.official_names import EXTRACTOR
from fcache.models.positions import pixel_centres
from tests.models.vectors import below, close, load, load_weights
from tests.shared import needs_shared


@needs_shared
def test_output_and_gradients_equal_the_official_ones() -> None:
    vectors = load("vit_adapter_extractor")
    extractor = Extractor(96, 6)
    load_weights(extractor, below(vectors, "sd/"), EXTRACTOR)
    query = vectors["in/query"].requires_grad_()
    feature = vectors["in/feat"].requires_grad_()
    centres = pixel_centres(scale_grids((4, 6)))
    close(centres, vectors["in/reference_points"])
    read = extractor.attention(
        extractor.query_norm(query), centres, extractor.value_norm(feature), [(4, 6)]
    )
    close(read, vectors["out_attn"])
    out = extractor(query, centres, feature, (4, 6))
    close(out, vectors["out"])
    (out * vectors["in/cotangent"]).sum().backward()
    close(query.grad, vectors["grad/query"])
    close(feature.grad, vectors["grad/feat"])


def test_scales_split_and_join_without_change() -> None:
    tokens = torch.randn(2, 21 * 6, 5)
    maps = split_scales(tokens, (4, 6))
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (4, 6), (2, 3)]
    assert torch.equal(join_scales(maps), tokens)


@pytest.mark.parametrize("grid", [(3, 4), (4, 5), (0, 2)])
def test_odd_grids_are_refused_with_the_canvas_rule(grid) -> None:
    with pytest.raises(ValueError, match=f"{grid[0]}x{grid[1]} is not even.*multiples of 32"):
        scale_grids(grid)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads=5 does not divide dim=32"):
        Extractor(32, 5)
