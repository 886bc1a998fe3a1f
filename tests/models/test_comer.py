from __future__ import annotations

import pytest
import torch

from fcache.models.comer import MRFP, ComerAdapter, Interaction
from fcache.models.extractor import scale_grids
from fcache.models.official_names import INTERACTION, MRFP as MRFP_NAMES
from fcache.models.positions import pixel_centres
from tests.models.tiny import DIM, pixels, stage_outputs
from tests.models.vectors import below, close, load, load_weights
from tests.shared import needs_shared

GRID = (4, 6)


@needs_shared
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_mrfp_equals_the_official_one(mode) -> None:
    vectors = load("vitcomer_mrfp")
    mrfp = MRFP(48, 48)
    load_weights(mrfp, below(vectors, "sd/"), MRFP_NAMES)
    with torch.no_grad():
        close(mrfp.train(mode == "train")(vectors["in"], GRID), vectors[f"out_{mode}"])


@needs_shared
@pytest.mark.parametrize(("part", "ffn_first"), [("cti_toc", False), ("extractor_cti", True)])
def test_interaction_to_the_pyramid_equals_the_official_one(part, ffn_first) -> None:
    vectors = load("vitcomer_cti_toc")
    interaction = Interaction(48, 6, ffn_first=ffn_first)
    load_weights(interaction, below(vectors, f"sd/{part}."), INTERACTION)
    centres = pixel_centres(scale_grids(GRID))
    with torch.no_grad():
        found = interaction(vectors["in/c"], centres, vectors["in/feat"], GRID)
    close(found, vectors[f"out/{part}"])


@pytest.mark.parametrize("interaction", ["extractor", "cti"])
def test_every_part_gets_a_gradient(interaction) -> None:
    torch.manual_seed(0)
    adapter = ComerAdapter(DIM, 2, prior_width=8, interaction=interaction)
    pyramid = adapter(stage_outputs(), pixels())
    assert [tuple(level.shape[1:]) for level in pyramid] == [
        (DIM, 16, 24),
        (DIM, 8, 12),
        (DIM, 4, 6),
        (DIM, 2, 3),
    ]
    sum(level.square().mean() for level in pyramid).backward()
    assert all(p.grad is not None for p in adapter.parameters())
    assert len(adapter.extra_extractors) == (2 if interaction == "extractor" else 4)


# Measured: 0.7% and 3.1% (MRFP's small first outputs meet a LayerNorm at once in CTI).
@pytest.mark.parametrize(("interaction", "bound"), [("extractor", 0.02), ("cti", 0.06)])
def test_autocast_gives_finite_maps_close_to_float32(interaction, bound) -> None:
    torch.manual_seed(0)
    adapter = ComerAdapter(DIM, 2, prior_width=8, interaction=interaction, checkpointing=True)
    exact = adapter(stage_outputs(), pixels())
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter(stage_outputs(), pixels())
        sum(level.float().square().mean() for level in found).backward()
    assert all(torch.isfinite(p.grad).all() for p in adapter.parameters())
    for level, expected in zip(found, exact, strict=True):
        error = (level.float() - expected).square().mean().sqrt()
        assert error < bound * expected.square().mean().sqrt()


def test_residual_form_starts_as_the_plain_adapter() -> None:
    adapter = ComerAdapter(DIM, 2, prior_width=8, residual=True).eval()
    with torch.no_grad():
        found = adapter(stage_outputs(), pixels())
        adapter.residual = False
        replaced = adapter(stage_outputs(), pixels())
        for mrfp in adapter.mrfps:
            mrfp.forward = lambda tokens, grid: tokens
        plain = adapter(stage_outputs(), pixels())
    for level, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(level, expected, atol=0, rtol=0)
    assert not torch.equal(found[0], replaced[0])


def test_checkpointing_counts_each_batch_once_in_the_running_statistics() -> None:
    adapters = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        adapter = ComerAdapter(DIM, 2, prior_width=8, checkpointing=checkpointing)
        sum(level.square().mean() for level in adapter(stage_outputs(), pixels())).backward()
        adapters.append(dict(adapter.named_buffers()))
    assert any("mrfps" in name for name in adapters[0])
    for name, buffer in adapters[0].items():
        assert torch.equal(buffer, adapters[1][name]), name


def test_an_odd_width_of_mrfp_is_refused() -> None:
    with pytest.raises(ValueError, match="dim=7 is odd"):
        MRFP(8, 7)
