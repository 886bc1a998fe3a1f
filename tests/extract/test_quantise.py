from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fcache.backbones import load
from fcache.config import BackboneSettings
from fcache.data.dequantise import dequantise
from fcache.extract.calibrate import Calibration, calibrate_frames
from fcache.extract.precision import ERROR_COLUMNS, describe_errors, merge_errors
from fcache.extract.quantise import Quantiser, valid_tokens
from tests.shared import SHARED, needs_shared

CPU = torch.device("cpu")
WHOLE = [(5, 7)] * 3


def features(seed: int = 0, shape=(3, 5, 7, 24)):
    """Channels of very different sizes, two of them massive, and one token ten times the rest."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    x *= np.exp(rng.standard_normal(shape[-1])).astype(np.float32)
    x[..., 3] += 400
    x[..., 11] *= 90
    x[1, 2, 3] *= 10
    return torch.from_numpy(x)


def scales_of(x):
    return x.abs().flatten(0, -2).amax(0).numpy()


def quantise(x, scales=None, valid=None):
    scales = scales_of(x) if scales is None else np.asarray(scales, np.float32)
    valid = [(x.shape[1], x.shape[2])] * len(x) if valid is None else valid
    return Quantiser([scales], CPU).quantise(0, x, valid), torch.from_numpy(scales)


HALVES = np.arange(0x7C01, dtype=np.uint16).view(np.float16)  # 0, subnormals .. 65504, infinity


def reference(x, scales):
    """The same by another way: the token scale by search over every float16 there is."""
    y = x.numpy() / scales
    largest = np.abs(y).max(-1)
    scale = HALVES[np.searchsorted(HALVES.astype(np.float64) * 127, largest)]
    q = np.rint(y / np.where(scale == 0, 1, scale).astype(np.float32)[..., None])
    return q.astype(np.int8), scale


@pytest.mark.parametrize("magnitude", [1e-12, 1e-6, 1e-3, 1.0, 3e3, 1e6])
def test_values_and_scales_equal_a_search_over_every_float16(magnitude) -> None:
    x = features() * magnitude
    scales = scales_of(features())
    found, _ = quantise(x, scales)
    q, scale = reference(x, scales)
    assert np.array_equal(found.scale.numpy(), scale)
    assert np.array_equal(found.values.numpy(), q)
    assert found.values.dtype == torch.int8
    assert found.scale.dtype == torch.float16


def test_no_token_clips_at_its_own_maximum() -> None:
    x = features()
    found, scales = quantise(x)
    largest = (x / scales).abs().amax(-1).double()
    scale = found.scale.double()
    assert (scale * 127 >= largest).all()
    below = (found.scale.view(torch.int16) - 1).view(torch.float16).double()
    assert (below * 127 < largest).all()
    assert found.values.abs().amax() == 127
    assert found.values.amin() >= -127


def test_error_of_a_value_is_at_most_half_a_step() -> None:
    x = features()
    found, scales = quantise(x)
    back = dequantise(found.values, found.scale, scales)
    step = found.scale.double()[..., None] * scales.double()
    assert ((back - x).abs() <= step / 2 * (1 + 1e-5)).all()


def test_ties_round_to_even() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5]).reshape(1, 1, 1, 8)
    found, _ = quantise(x, np.ones(8))
    assert found.scale.item() == 1
    assert found.values.flatten().tolist() == [127, 0, 2, 2, 0, -2, 126, -126]


def test_token_of_zeros_has_scale_zero_and_no_error() -> None:
    x = features()
    x[0, 1, 2] = 0
    found, scales = quantise(x)
    assert found.scale[0, 1, 2] == 0
    assert not found.values[0, 1, 2].any()
    assert not dequantise(found.values, found.scale, scales)[0, 1, 2].any()
    assert torch.isfinite(found.errors).all()
    [only] = describe_errors(merge_errors([quantise(x * 0, scales)[0].errors[:, None].numpy()]))
    assert only == {
        "num_tokens": 105, "relative_l2": 0, "bulk_relative_l2": 0, "cosine": 1, "worst_token": 0,
    }  # fmt: skip


@pytest.mark.parametrize("tiny", [1e-45, 1e-30, 1e-8, 2.0**-24, 7e-6])
def test_smallest_magnitudes_get_a_scale_above_zero(tiny) -> None:
    x = torch.tensor([tiny, -tiny / 2, 0.0]).reshape(1, 1, 1, 3)
    found, scales = quantise(x, np.ones(3))
    assert found.scale.item() >= 2.0**-24
    back = dequantise(found.values, found.scale, scales)
    assert torch.isfinite(back).all()
    assert (back - x).abs().max() <= 2.0**-25


def test_largest_scale_is_finite_and_the_next_is_not() -> None:
    limit = 65504 * 127.0
    x = torch.tensor([[limit, 1.0], [np.nextafter(np.float32(limit), np.inf), 1.0]])
    found, _ = quantise(x.reshape(2, 1, 1, 2), np.ones(2))
    assert found.scale.flatten().tolist() == [65504, float("inf")]
    assert found.values[0].flatten().tolist() == [127, 0]


def test_what_is_no_number_shows_in_the_scale() -> None:
    x = features()
    x[0, 0, 0, 0] = torch.nan
    x[2, 4, 6, 5] = torch.inf
    scale = quantise(x, scales_of(features()))[0].scale
    assert torch.isnan(scale[0, 0, 0])
    assert torch.isinf(scale[2, 4, 6])
    assert torch.isfinite(scale).sum() == scale.numel() - 2


VALID = [(5, 7), (3, 4), (1, 7)]


def exact_errors(x, back, scales, valid):
    """Error sums in float64 by their definition, a token at a time."""
    rows = []
    for frame, (height, width) in enumerate(valid):
        row = dict.fromkeys(ERROR_COLUMNS, 0.0)
        for a, b in zip(
            x[frame, :height, :width].double().flatten(0, 1).numpy(),
            back[frame, :height, :width].double().flatten(0, 1).numpy(),
            strict=True,
        ):
            row["num_tokens"] += 1
            row["signal"] += a @ a
            row["noise"] += (a - b) @ (a - b)
            row["bulk_signal"] += (a / scales) @ (a / scales)
            row["bulk_noise"] += ((a - b) / scales) @ ((a - b) / scales)
            row["cosine"] += (a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
            worst = np.linalg.norm(a - b) / np.linalg.norm(a)
            row["worst_token"] = max(row["worst_token"], worst)
        rows.append([row[name] for name in ERROR_COLUMNS])
    return np.array(rows)


def test_errors_are_what_a_reader_sees_in_valid_tokens() -> None:
    x = features()
    found, scales = quantise(x, valid=VALID)
    back = dequantise(found.values, found.scale, scales)
    wanted = exact_errors(x, back, scales.double().numpy(), VALID)
    assert found.errors.dtype == torch.float64
    np.testing.assert_allclose(found.errors.numpy(), wanted, rtol=2e-6)


def test_tokens_outside_the_valid_area_leave_no_trace_in_the_errors() -> None:
    x = features()
    scales = scales_of(x)
    before, _ = quantise(x, scales, VALID)
    for frame, (height, width) in enumerate(VALID):
        x[frame, height:] *= 37
        x[frame, :, width:] = 1e9
    after, _ = quantise(x, scales, VALID)
    assert torch.equal(before.errors, after.errors)
    assert not torch.equal(before.values, after.values)


def test_errors_of_shards_add_up_to_those_of_the_view() -> None:
    x = features(shape=(12, 5, 7, 24))
    scales = scales_of(x)
    whole = quantise(x, scales)[0].errors[:, None].numpy()  # [B, S, K], one stage
    shards = [
        merge_errors([quantise(x[part], scales)[0].errors[:, None].numpy()])
        for part in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    merged = merge_errors(shards)
    np.testing.assert_allclose(merged, merge_errors([whole]), rtol=1e-14)
    assert merged[0, ERROR_COLUMNS.index("num_tokens")] == 12 * 35
    assert merged[0, ERROR_COLUMNS.index("worst_token")] == whole[..., -1].max()
    with pytest.raises(ValueError, match="none"):
        merge_errors([])
    with pytest.raises(ValueError, match="expected"):
        merge_errors([np.zeros((4, 3))])


def test_description_takes_ratios_of_the_sums() -> None:
    sums = np.zeros((1, len(ERROR_COLUMNS)))
    given = {
        "num_tokens": 4, "signal": 100, "noise": 4, "bulk_signal": 9, "bulk_noise": 1,
        "cosine": 3, "worst_token": 0.7,
    }  # fmt: skip
    for name, value in given.items():
        sums[0, ERROR_COLUMNS.index(name)] = value
    [stage] = describe_errors(sums)
    assert stage["relative_l2"] == pytest.approx(0.2)
    assert stage["bulk_relative_l2"] == pytest.approx(1 / 3)
    assert stage["cosine"] == 0.75
    assert stage["worst_token"] == 0.7
    assert describe_errors(sums * 0)[0]["relative_l2"] == 0


def test_bulk_error_is_not_hidden_by_massive_channels() -> None:
    x = features()
    x[..., 3] = 1e5
    scales = scales_of(x)
    scales[3] = 1  # as if the massive channel had been silent in calibration
    found, _ = quantise(x, scales)
    [stage] = describe_errors(merge_errors([found.errors[:, None].numpy()]))
    assert stage["relative_l2"] < 0.01
    without = np.delete(np.arange(24), 3)
    back = dequantise(found.values, found.scale, torch.from_numpy(scales))
    assert not back[..., without].any()  # every other channel is lost, which relative_l2 hides
    fair, _ = quantise(x)
    [fair_stage] = describe_errors(merge_errors([fair.errors[:, None].numpy()]))
    assert fair_stage["bulk_relative_l2"] < 0.02


def test_valid_tokens_hold_at_least_one_valid_pixel() -> None:
    assert valid_tokens([(1, 16), (17, 32), (480, 853)], 16) == [(1, 1), (2, 2), (30, 54)]


def test_features_of_another_stage_or_type_are_refused() -> None:
    quantiser = Quantiser([np.ones(24, np.float32), np.ones(8, np.float32)], CPU)
    with pytest.raises(ValueError, match="expected float32"):
        quantiser.quantise(1, features(), WHOLE)
    with pytest.raises(ValueError, match="expected float32"):
        quantiser.quantise(0, features().half(), WHOLE)
    with pytest.raises(ValueError, match="2 valid areas for 3 frames"):
        quantiser.quantise(0, features(), WHOLE[:2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_stores_the_same_bits_as_the_cpu() -> None:
    x = features()
    here, scales = quantise(x, valid=VALID)
    cuda = torch.device("cuda")
    there = Quantiser([scales.numpy()], cuda).quantise(0, x.to(cuda), VALID)
    assert torch.equal(there.values.cpu(), here.values)
    assert torch.equal(there.scale.cpu(), here.scale)
    torch.testing.assert_close(there.errors.cpu(), here.errors, rtol=1e-5, atol=0)


@needs_shared
def test_real_features_lose_less_than_one_percent_in_every_stage() -> None:
    weights = SHARED / "data" / "weights" / "sam2_hiera_tiny_trunk_fp16.safetensors"
    net = load(BackboneSettings(model="sam2_hiera_tiny", weights=str(weights)), device=CPU)
    images = sorted((SHARED / "data" / "annotated" / "camvid" / "train").glob("*/images/*"))[::60]
    canvases = []
    for path in images:
        canvas = np.zeros((384, 480, 3), np.uint8)
        canvas[:360] = np.asarray(Image.open(path).convert("RGB"))
        canvases.append(canvas)
    calibration = Calibration.from_maxima(
        calibrate_frames(net, canvases[::2], [(360, 480)] * len(canvases[::2]))
    )
    quantiser = Quantiser(calibration.channel_scales, CPU)
    sums = []
    for canvas in canvases[1::2]:  # frames that calibration did not see
        outputs = net(torch.from_numpy(canvas[None]), (360, 480))
        found = [
            quantiser.quantise(index, stage, valid_tokens([(360, 480)], 4 * 2**index)).errors
            for index, stage in enumerate(outputs)
        ]
        sums.append(torch.stack(found, 1).numpy())
    for stage in describe_errors(merge_errors(sums)):
        assert 1e-3 < stage["bulk_relative_l2"] < 0.01
        assert 1e-3 < stage["relative_l2"] < 0.01
        assert 0.9999 < stage["cosine"] < 1
        assert stage["worst_token"] < 0.02
