from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed

from fcache.backbones.resample import default_rule, resample_positions, resize_kernel
from tests.shared import SHARED, needs_shared

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # of the vectors


@pytest.fixture(scope="module")
def vectors():
    return load_file(SHARED / "vectors" / "parity" / "vit_input_embedding.safetensors")


@needs_shared
@pytest.mark.parametrize("grid", [(46, 80), (38, 38), (37, 37), (40, 71), (9, 16)])
def test_positions_equal_the_official_rule(vectors, grid) -> None:
    expected = vectors[f"out/pos/{grid[0]}x{grid[1]}"]
    found = resample_positions(vectors["in/pos_embed"][:, 1:], grid, "dinov2")
    torch.testing.assert_close(found, expected[:, 1:], **TOLERANCE)
    torch.testing.assert_close(vectors["in/pos_embed"][:, :1], expected[:, :1])


@needs_shared
def test_register_positions_equal_the_official_rule(vectors) -> None:
    found = resample_positions(vectors["in/pos_embed"][:, 1:], (46, 80), "dinov2_reg")
    torch.testing.assert_close(found, vectors["out/pos_reg4/46x80"][:, 1:], **TOLERANCE)


@needs_shared
def test_the_two_official_rules_differ_beyond_the_tolerance(vectors) -> None:
    trained = vectors["in/pos_embed"][:, 1:]
    plain = resample_positions(trained, (46, 80), "dinov2")
    registers = resample_positions(trained, (46, 80), "dinov2_reg")
    assert (plain - registers).abs().max() > 1e-3


@needs_shared
def test_patch_kernel_equals_the_official_resize(vectors) -> None:
    found = resize_kernel(vectors["in/patch_w14"], 16)
    torch.testing.assert_close(found, vectors["out/patch_w16"], **TOLERANCE)


def test_patch_kernel_of_the_wanted_size_is_untouched() -> None:
    kernel = torch.randn(4, 3, 16, 16)
    assert resize_kernel(kernel, 16) is kernel


def test_resized_kernel_keeps_its_corners() -> None:
    kernel = torch.randn(4, 3, 14, 14)
    resized = resize_kernel(kernel, 16)
    corners = (0, 0, -1, -1), (0, -1, 0, -1)
    torch.testing.assert_close(resized[..., corners[0], corners[1]], kernel[..., *corners])


@pytest.mark.parametrize("rule", ["dinov2", "dinov2_reg", "timm"])
def test_trained_grid_is_returned_unchanged_and_a_turned_one_is_not(rule) -> None:
    trained = torch.randn(1, 36, 8)
    assert torch.equal(resample_positions(trained, (6, 6), rule), trained)
    turned = resample_positions(trained, (4, 9), rule)
    assert turned.shape == trained.shape
    assert not torch.allclose(turned, trained)


def test_timm_rule_is_that_of_timm() -> None:
    trained = torch.randn(1, 49, 8)
    expected = resample_abs_pos_embed(trained, [5, 11], [7, 7], num_prefix_tokens=0)
    assert torch.equal(resample_positions(trained, (5, 11), "timm"), expected)


def test_dinov2_rule_samples_other_points_than_a_resize_to_size() -> None:
    trained = torch.randn(1, 49, 8)
    square = trained.reshape(1, 7, 7, 8).permute(0, 3, 1, 2)
    to_size = F.interpolate(square, size=(12, 20), mode="bicubic").permute(0, 2, 3, 1)
    found = resample_positions(trained, (12, 20), "dinov2")
    assert (found - to_size.flatten(1, 2)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        ("vit_giant_patch14_dinov2", "dinov2"),
        ("vit_giant_patch14_reg4_dinov2", "dinov2_reg"),
        ("vit_tiny_patch16_224", "timm"),
        ("vit_base_patch16_reg4_gap_256", "timm"),
    ],
)
def test_default_rule_follows_the_model_name(model, rule) -> None:
    assert default_rule(model) == rule
