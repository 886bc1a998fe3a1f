from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file

from fcache.backbones import describe, load
from fcache.backbones.pyramid import PyramidTrunk
from fcache.errors import ConfigError
from tests.backbones.tiny import CPU, backbone, canvas, settings
from tests.shared import SHARED, needs_shared

HIERA = SHARED / "data" / "weights" / "sam2_hiera_tiny_trunk_fp16.safetensors"
SWIN_OPTIONS = {"strict_img_size": False, "always_partition": True}


def timm_outputs(loaded, model, pixels, out_indices, **options):
    """The channels-last outputs of timm's own features_only model with the same values."""
    net = timm.create_model(
        model, pretrained=False, features_only=True, out_indices=out_indices, **options
    ).eval()
    state = {name.removeprefix("net."): t for name, t in loaded.trunk.state_dict().items()}
    net.load_state_dict(state)
    with torch.no_grad():
        outputs = net(pixels)
    if str(net.output_fmt).endswith("NHWC"):
        return outputs
    return [output.permute(0, 2, 3, 1) for output in outputs]


@needs_shared
def test_real_hiera_uses_every_tensor_of_its_file_and_equals_timm() -> None:
    loaded = backbone("sam2_hiera_tiny", HIERA)
    stored = load_file(HIERA)
    placed = {name.removeprefix("net.model."): t for name, t in loaded.trunk.state_dict().items()}
    assert placed.keys() == stored.keys()
    assert all(torch.equal(placed[name], stored[name].float()) for name in stored)
    frames = canvas(2, 384, 480)
    outputs = loaded(frames, (360, 480))
    pixels = loaded.normalise(frames, (360, 480))
    expected = timm_outputs(loaded, "sam2_hiera_tiny", pixels, (0, 1, 2, 3))
    for output, reference in zip(outputs, expected, strict=True):
        assert output.is_contiguous()
        assert torch.equal(output, reference)


@needs_shared
def test_real_hiera_outputs_move_with_the_picture() -> None:
    loaded = backbone("sam2_hiera_tiny", HIERA)
    one, other = (loaded(canvas(1, 128, 128, seed), (128, 128))[3] for seed in (0, 1))
    assert (one - other).abs().mean() > 0.01 * one.abs().mean()


@pytest.mark.parametrize(
    ("model", "indices", "options"),
    [
        ("resnet18", (1, 2, 3, 4), {}),
        ("swin_tiny_patch4_window7_224", (0, 1, 2, 3), SWIN_OPTIONS),
    ],
)
def test_outputs_equal_features_only(model, indices, options) -> None:
    loaded = backbone(model)
    frames = canvas(1, 128, 160)
    outputs = loaded(frames, (120, 160))
    pixels = loaded.normalise(frames, (120, 160))
    expected = timm_outputs(loaded, model, pixels, indices, **options)
    for output, reference in zip(outputs, expected, strict=True):
        assert torch.equal(output, reference)
        assert output.std() > 1e-3


def test_wrapper_that_does_not_say_its_layout_gives_channels_last() -> None:
    loaded = backbone("efficientnet_b0")
    assert not hasattr(loaded.trunk.net, "output_fmt")
    outputs = loaded(canvas(1, 128, 160), (128, 160))
    shapes = [(1, 32, 40, 24), (1, 16, 20, 40), (1, 8, 10, 112), (1, 4, 5, 320)]
    assert [tuple(output.shape) for output in outputs] == shapes


@pytest.mark.parametrize("size", [(384, 480), (480, 864)])
@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("sam2_hiera_tiny", (96, 192, 384, 768)),
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),
        ("resnet50", (256, 512, 1024, 2048)),
        ("mobilevitv2_100", (128, 256, 384, 512)),
    ],
)
def test_both_canvases_give_each_stride_its_grid(model, channels, size) -> None:
    loaded = load(settings(model), device=CPU)
    assert tuple(stage.channels for stage in loaded.description.stages) == channels
    assert tuple(stage.stride for stage in loaded.description.stages) == (4, 8, 16, 32)
    height, width = size
    outputs = loaded(canvas(1, height, width), (height - 5, width))
    for output, stage in zip(outputs, loaded.description.stages, strict=True):
        grid = (height // stage.stride, width // stage.stride)
        assert output.shape == (1, *grid, stage.channels)
        assert output.dtype == torch.float32
        assert output.isfinite().all()


def test_mobilevit_is_resized_back_only_where_its_grid_is_odd() -> None:
    loaded = backbone("mobilevitv2_100")
    assert loaded.description.architecture["regrid"] is True
    raw = PyramidTrunk(loaded.trunk.net, regrid=False)
    for size, is_equal in (((128, 128), True), ((96, 128), False)):
        pixels = loaded.normalise(canvas(1, *size), size)
        with torch.no_grad():
            own, left = loaded.trunk(pixels)[3], raw(pixels)[3]
        assert own.shape[1:3] == (size[0] // 32, size[1] // 32)
        assert (own.shape == left.shape) is is_equal


@pytest.mark.parametrize(
    "model", ["resnet18", "swin_tiny_patch4_window7_224", "sam2_hiera_tiny", "mobilevitv2_050"]
)
def test_low_precision_equals_plain_autocast_bit_for_bit(model) -> None:
    full = backbone(model)
    low = backbone(model, compute_dtype="bfloat16")
    frames = canvas(1, 128, 160)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = full.trunk(full.normalise(frames, (120, 160)))
    for output, plain in zip(low(frames, (120, 160)), expected, strict=True):
        assert torch.equal(output, plain.float())
    assert low.weights_sha256 == full.weights_sha256


def test_pixels_outside_the_valid_area_change_nothing() -> None:
    loaded = backbone("resnet18")
    clean = canvas(1, 128, 160)
    noisy = clean.clone()
    noisy[:, 100:] = 7
    for one, other in zip(loaded(clean, (100, 160)), loaded(noisy, (100, 160)), strict=True):
        assert torch.equal(one, other)


def test_swin_keeps_its_windows_on_every_canvas() -> None:
    options = describe(settings("swin_large_patch4_window12_384")).architecture["options"]
    assert options == SWIN_OPTIONS


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("hiera_tiny_224", "cannot run on a 384x480 canvas .*3136"),
        ("maxvit_tiny_tf_224", "cannot run on a 384x480 canvas .*divisible by window"),
        ("beit_base_patch16_224", "Beit.* has 12 outputs at strides 16; expected"),
        ("vit_small_r26_s32_224", "expected a plain ViT"),
        ("convmixer_768_32", "no listed outputs|at strides"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_the_reason(model, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        describe(settings(model))


def test_settings_of_a_vit_are_refused() -> None:
    with pytest.raises(ConfigError, match="blocks=, patch= belong to plain ViTs"):
        describe(settings("resnet18", blocks=(0, 1, 2, 3), patch=14))


def test_canvas_that_is_no_multiple_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        backbone("resnet18")(canvas(1, 112, 128), (112, 128))


def test_parameters_after_the_last_output_are_not_built() -> None:
    names = backbone("resnet18").trunk.state_dict()
    assert not [name for name in names if ".fc." in name]
    hiera = backbone("sam2_hiera_tiny").trunk.state_dict()
    assert not [name for name in hiera if "head" in name]
