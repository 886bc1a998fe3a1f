from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file

from fcache.backbones import describe
from fcache.backbones.resample import resize_kernel
from fcache.errors import ConfigError
from tests.backbones.tiny import backbone, canvas, settings
from tests.shared import SHARED, needs_shared


def reference(loaded, model, **changes):
    """timm's own model with the values of a loaded float32 backbone."""
    vit = timm.create_model(model, pretrained=False, num_classes=0, **changes).eval()
    state = {name.removeprefix("vit."): t for name, t in loaded.trunk.state_dict().items()}
    missing, unexpected = vit.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(("norm.", "fc_norm.")) for name in missing)
    return vit


@needs_shared
def test_stage_outputs_equal_the_official_vit(tmp_path) -> None:
    vectors = load_file(SHARED / "vectors" / "parity" / "vit_adapter_full.safetensors")
    official = {k.removeprefix("sd/"): v for k, v in vectors.items() if "vit_module." in k}
    torch.save({"model": official}, tmp_path / "official.pth")
    loaded = backbone(weights=tmp_path / "official.pth", pos="dinov2")
    with torch.no_grad():
        tokens = loaded.trunk.embed(vectors["in/image"], (4, 6))
        outputs = loaded.trunk(vectors["in/image"])
    torch.testing.assert_close(tokens, vectors["mid/tokens0"], atol=1e-5, rtol=1e-4)
    for stage, output in enumerate(outputs):
        expected = vectors[f"in/stage_outputs/{stage}"].unflatten(1, (4, 6))
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_outputs_equal_timm_intermediate_layers_at_the_trained_size() -> None:
    loaded = backbone("vit_tiny_patch16_224")
    frames = canvas(2, 224, 224)
    vit = reference(loaded, "vit_tiny_patch16_224")
    with torch.no_grad():
        pixels = loaded.normalise(frames, (224, 224))
        expected = vit.get_intermediate_layers(pixels, [2, 5, 8, 11], norm=False)
    for output, tokens in zip(loaded(frames, (224, 224)), expected, strict=True):
        torch.testing.assert_close(output, tokens.unflatten(1, (14, 14)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_outputs_equal_timm_at_another_size_under_its_own_rule(model) -> None:
    patch = 14 if "patch14" in model else 16
    loaded = backbone(model, pos="timm", patch=patch)
    frames = canvas(1, 6 * patch, 10 * patch)
    vit = reference(loaded, model, dynamic_img_size=True)
    with torch.no_grad():
        pixels = loaded.normalise(frames, frames.shape[1:3])
        expected = vit.get_intermediate_layers(pixels, [2, 5, 8, 11], norm=False)
    for output, tokens in zip(loaded(frames, (6 * patch, 10 * patch)), expected, strict=True):
        torch.testing.assert_close(output, tokens.unflatten(1, (6, 10)), atol=1e-5, rtol=1e-5)


def test_model_without_class_token_equals_timm() -> None:
    loaded = backbone("vit_no_class_token")
    vit = reference(loaded, "vit_no_class_token")
    frames = canvas(2, 64, 64)
    with torch.no_grad():
        pixels = loaded.normalise(frames, (64, 64))
        expected = vit.get_intermediate_layers(pixels, [0, 1, 2, 3], norm=False)
    for output, tokens in zip(loaded(frames, (64, 64)), expected, strict=True):
        torch.testing.assert_close(output, tokens.unflatten(1, (4, 4)), atol=1e-5, rtol=1e-5)


def test_patch_16_resizes_the_trained_kernel() -> None:
    native = backbone("vit_small_swiglu_reg2", patch=14)
    resized = backbone("vit_small_swiglu_reg2", patch=16)
    kernel = native.trunk.vit.patch_embed.proj.weight
    assert torch.equal(resized.trunk.vit.patch_embed.proj.weight, resize_kernel(kernel, 16))
    assert native.weights_sha256 == resized.weights_sha256
    assert resized(canvas(1, 64, 96), (64, 96))[0].shape == (1, 4, 6, 32)
    assert native(canvas(1, 56, 84), (56, 84))[0].shape == (1, 4, 6, 32)


def test_position_rule_changes_the_outputs() -> None:
    frames = canvas(1, 64, 96)
    by_rule = [backbone(pos=rule)(frames, (64, 96))[0] for rule in ("dinov2", "dinov2_reg")]
    assert (by_rule[0] - by_rule[1]).abs().max() > 1e-4


def test_blocks_choose_the_outputs_and_drop_what_follows() -> None:
    whole = backbone()
    early = backbone(blocks=(0, 1, 3, 5))
    assert len(early.trunk.vit.blocks) == 6
    assert whole.description.blocks == (1, 3, 5, 7)
    frames = canvas(1, 64, 64)
    first, second = whole(frames, (64, 64)), early(frames, (64, 64))
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[2], second[3])


def test_weights_of_later_blocks_and_norms_are_not_hashed() -> None:
    assert backbone(blocks=(0, 1, 2, 3)).weights_sha256 == (
        backbone(blocks=(0, 1, 2, 3), compute_dtype="bfloat16").weights_sha256
    )
    assert backbone(blocks=(0, 1, 2, 3)).weights_sha256 != backbone().weights_sha256
    names = backbone().trunk.state_dict()
    assert not [name for name in names if name.startswith(("vit.norm.", "vit.head."))]


def test_pixels_outside_the_valid_area_change_nothing() -> None:
    loaded = backbone()
    clean = canvas(2, 64, 96)
    noisy = clean.clone()
    noisy[0, 50:] = 255
    noisy[0, :, 70:] = 255
    noisy[1, 64:] = 255
    valid = [(50, 70), (64, 96)]
    for one, other in zip(loaded(clean, valid), loaded(noisy, valid), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(loaded(clean, (64, 96))[0], loaded(noisy, (64, 96))[0])


def test_padding_is_zero_after_normalisation() -> None:
    loaded = backbone()
    pixels = loaded.normalise(canvas(1, 64, 96), (40, 80))
    assert pixels.dtype == torch.float32
    assert pixels[:, :, 40:].abs().max() == 0
    assert pixels[:, :, :, 80:].abs().max() == 0
    frame = canvas(1, 64, 96)[0, 3, 5].double()
    mean, std = (
        torch.tensor(v).double() for v in (loaded.description.mean, loaded.description.std)
    )
    torch.testing.assert_close(pixels[0, :, 3, 5].double(), (frame - mean) / std, atol=1e-6, rtol=0)


def test_a_frame_gives_the_same_alone_and_in_a_batch() -> None:
    loaded = backbone("vit_tiny_patch16_224")
    frames = canvas(3, 96, 160)
    together = loaded(frames, (90, 160))
    for index in range(3):
        alone = loaded(frames[index : index + 1], (90, 160))
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[index], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_swiglu_reg2"])
def test_low_precision_equals_plain_autocast_bit_for_bit(model, compute) -> None:
    full = backbone(model)
    low = backbone(model, compute_dtype=compute)
    dtype = getattr(torch, compute)
    assert low.trunk.vit.blocks[0].attn.qkv.weight.dtype == dtype
    assert low.trunk.vit.blocks[0].norm1.weight.dtype == torch.float32
    assert low.trunk.vit.pos_embed.dtype == torch.float32
    frames = canvas(2, 64, 96)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        expected = full.trunk(full.normalise(frames, (60, 90)))
    for output, plain in zip(low(frames, (60, 90)), expected, strict=True):
        assert output.dtype == plain.dtype == torch.float32
        assert torch.equal(output, plain)
    assert not torch.equal(expected[3], full(frames, (60, 90))[3])


def test_giant_taps_its_quarters_at_patch_16() -> None:
    giant = describe(settings("vit_giant_patch14_dinov2"))
    assert giant.blocks == (9, 19, 29, 39)
    assert [(stage.channels, stage.stride) for stage in giant.stages] == [(1536, 16)] * 4
    assert giant.mean == (123.675, 116.28, 103.53)
    assert giant.std == (58.395, 57.12, 57.375)
    assert (giant.pos, giant.patch) == ("dinov2", 16)
    assert giant.architecture["depth"] == 40
    assert giant.architecture["num_heads"] == 24


def test_depth_that_has_no_quarters_asks_for_blocks() -> None:
    with pytest.raises(ConfigError, match=r"has 6 blocks.*blocks=\[1,2,4,5\]"):
        describe(settings("vit_six_blocks"))
    assert describe(settings("vit_six_blocks", blocks=(0, 2, 4, 5))).blocks == (0, 2, 4, 5)


@pytest.mark.parametrize("blocks", [(0, 1, 2, 8), (3, 2, 1, 0), (1, 1, 2, 3), (-1, 0, 1, 2)])
def test_impossible_blocks_are_refused(blocks) -> None:
    with pytest.raises(ConfigError, match="four ascending indexes from 0 to 7"):
        describe(settings(blocks=blocks))


def test_patch_that_is_neither_14_nor_16_is_refused() -> None:
    with pytest.raises(ConfigError, match="patches of 32x32 pixels; expected 14 or 16"):
        describe(settings("vit_base_patch32_224"))


def test_wrong_canvases_are_refused() -> None:
    loaded = backbone()
    with pytest.raises(ValueError, match="uint8"):
        loaded(canvas(1, 64, 64).float(), (64, 64))
    with pytest.raises(ValueError, match="multiples of 16"):
        loaded(canvas(1, 64, 70), (64, 64))
    with pytest.raises(ValueError, match="inside the canvas"):
        loaded(canvas(1, 64, 64), (65, 64))
    with pytest.raises(ValueError, match="one each"):
        loaded(canvas(3, 64, 64), [(64, 64)])
