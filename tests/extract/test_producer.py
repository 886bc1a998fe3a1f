from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fcache.backbones import weights_hash
from fcache.data.dequantise import dequantise
from fcache.errors import ConfigError, FeatureError, WeightsError
from fcache.extract.calibrate import Calibration
from fcache.extract.precision import ERROR_COLUMNS, describe_errors, merge_errors
from fcache.extract.producer import BackboneProducer, Produced, ProducerSettings
from fcache.extract.quantise import Quantiser, valid_tokens
from tests.backbones.tiny import CPU, backbone, canvas, settings

PLAIN, PYRAMID = "vit_small_swiglu_reg2", "resnet18"
VALID = [(60, 90), (64, 96), (33, 1), (64, 64)]


def settings_of(model: str = PLAIN, dtype: str = "float32", **changes) -> ProducerSettings:
    chosen = settings(model)
    sha256 = changes.pop("weights_sha256", "") or weights_hash(chosen)[0]
    return ProducerSettings(chosen, dtype, "cpu", False, sha256, **changes)


def producer(model: str = PLAIN, dtype: str = "float32", **changes) -> BackboneProducer:
    return BackboneProducer(settings_of(model, dtype, **changes))


def frames(count: int = 4, height: int = 64, width: int = 96):
    return canvas(count, height, width).numpy()


def calibration(model: str = PLAIN) -> Calibration:
    return Calibration.from_maxima(producer(model).calibrate(frames(), VALID))


def same(one: Produced, other: Produced) -> bool:
    assert one.arrays.keys() == other.arrays.keys()
    pairs = [
        *(
            (a, b)
            for name in one.arrays
            for a, b in zip(one.arrays[name], other.arrays[name], strict=True)
        ),
        (one.largest, other.largest),
        (one.errors, other.errors),
    ]
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("model", [PLAIN, PYRAMID])
def test_arrays_hold_the_stage_outputs_under_the_names_of_the_view(model, dtype) -> None:
    produced = producer(model, dtype).produce(frames(), VALID)
    outputs = backbone(model)(torch.from_numpy(frames()), VALID)
    if model == PLAIN:
        assert list(produced.arrays) == ["tokens"]
        stages = produced.arrays["tokens"]
    else:
        assert list(produced.arrays) == ["stage0", "stage1", "stage2", "stage3"]
        stages = [only for [only] in produced.arrays.values()]
    assert produced.errors is None
    assert produced.largest.shape == (4, 4)
    for index, (stored, output) in enumerate(zip(stages, outputs, strict=True)):
        wanted = output.to(getattr(torch, dtype))
        if dtype == "bfloat16":
            assert stored.dtype == np.uint16
            stored = torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float().numpy()
            wanted = wanted.float()
        assert np.array_equal(stored, wanted.numpy())
        largest = output.abs().amax((1, 2, 3)).double().numpy()
        assert np.array_equal(produced.largest[:, index], largest)


@pytest.mark.parametrize("model", [PLAIN, PYRAMID])
def test_int8_is_the_quantised_output_of_every_stage(model) -> None:
    scales = calibration(model)
    produced = producer(model, "int8", calibration=scales).produce(frames(), VALID)
    net = backbone(model)
    outputs = net(torch.from_numpy(frames()), VALID)
    quantiser = Quantiser(scales.channel_scales, CPU)
    if model == PLAIN:
        assert list(produced.arrays) == ["tokens", "scale"]
    else:
        assert list(produced.arrays) == [
            *(f"stage{index}" for index in range(4)),
            *(f"scale{index}" for index in range(4)),
        ]
    chunks = [chunk for name in produced.arrays for chunk in produced.arrays[name]]
    assert produced.errors is not None
    assert produced.errors.shape == (4, 4, len(ERROR_COLUMNS))
    for index, output in enumerate(outputs):
        spec = net.description.stages[index]
        wanted = quantiser.quantise(index, output, valid_tokens(VALID, spec.stride))
        values, scale = chunks[index], chunks[4 + index]
        assert (values.dtype, scale.dtype) == (np.int8, np.float16)
        assert np.array_equal(values, wanted.values.numpy())
        assert np.array_equal(scale, wanted.scale.numpy())
        assert np.array_equal(produced.errors[:, index], wanted.errors.numpy())
        channels = torch.from_numpy(scales.channel_scales[index].copy())
        back = dequantise(torch.from_numpy(values), torch.from_numpy(scale), channels)
        assert 0 < (back - output).norm() < 0.02 * output.norm()
    numbers = describe_errors(merge_errors([produced.errors]))
    assert all(0 < stage["relative_l2"] < 0.02 for stage in numbers)


def test_padding_of_another_content_does_not_change_the_errors() -> None:
    scales = calibration()
    int8 = producer(dtype="int8", calibration=scales)
    noisy = frames()
    for frame, (height, width) in zip(noisy, VALID, strict=True):
        frame[height:] = 255
        frame[:, width:] = 7
    assert same(int8.produce(frames(), VALID), int8.produce(noisy, VALID))


def test_int8_without_a_calibration_only_calibrates() -> None:
    waiting = producer(dtype="int8")
    assert Calibration.from_maxima(waiting.calibrate(frames(), VALID)) == calibration()
    with pytest.raises(ValueError, match="without a calibration"):
        waiting.produce(frames(), VALID)


def test_features_far_beyond_the_calibration_are_refused_by_int8() -> None:
    tiny = Calibration(tuple(scale * 1e-9 for scale in calibration().channel_scales), 4)
    with pytest.raises(FeatureError, match=r"stage 0: the features reach .* 8\.3e\+06 times"):
        producer(dtype="int8", calibration=tiny).produce(frames(), VALID)


def test_features_that_are_no_numbers_are_left_for_the_writer_to_name() -> None:
    int8 = producer(dtype="int8", calibration=calibration())
    gamma = int8._backbone.trunk.vit.blocks[3].ls1.gamma
    before = gamma[0].item()
    try:
        gamma[0] = torch.nan
        produced = int8.produce(frames(), VALID)
    finally:
        gamma[0] = before
    assert np.isnan(produced.largest[:, 3]).all()
    assert np.isfinite(produced.largest[:, :3]).all()


def test_settings_with_a_calibration_are_hashable_and_survive_pickling() -> None:
    made = settings_of(dtype="int8", calibration=calibration())
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert hash(again) == hash(made)
    other = Calibration(tuple(scale * 2 for scale in calibration().channel_scales), 4)
    assert made != settings_of(dtype="int8", calibration=other)


def test_extracting_after_calibrating_reads_no_weights_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = backbone(PLAIN).trunk.vit.state_dict()
    torch.save(state, path)
    chosen = settings(PLAIN, path)
    sha256 = weights_hash(chosen)[0]
    first = BackboneProducer(ProducerSettings(chosen, "int8", "cpu", False, sha256))
    made = Calibration.from_maxima(first.calibrate(frames(), VALID))
    path.unlink()
    second = BackboneProducer(ProducerSettings(chosen, "int8", "cpu", False, sha256, made))
    assert second.produce(frames(), VALID).errors is not None
    with pytest.raises(WeightsError):
        BackboneProducer(ProducerSettings(chosen, "int8", "cpu", False, "0" * 64))


def test_weights_that_are_not_those_of_the_plan_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"hash to .* the plan was made with 000000000000"):
        producer(weights_sha256="0" * 64)


def test_mixed_frames_equal_those_produced_alone() -> None:
    int8 = producer(dtype="int8", calibration=calibration())
    sizes = [(64, 96), (32, 64), (96, 32)]
    drawn = [frames(1, *size)[0] for size in sizes]
    valid = [(60, 90), (32, 64), (90, 2)]
    mixed = int8.produce_mixed(drawn, valid)
    assert len(mixed) == 3
    for frame, area, found in zip(drawn, valid, mixed, strict=True):
        alone = int8.produce(frame[None], [area])
        for one, other in zip(found.arrays["tokens"], alone.arrays["tokens"], strict=True):
            assert one.shape == other.shape
            # The same up to rounding: a value on the edge of two levels may take either.
            assert np.abs(one.astype(int) - other).max() <= 1
            assert (one != other).mean() < 1e-3
        np.testing.assert_allclose(found.largest, alone.largest, rtol=1e-5)
    assert int8.produce_mixed([], []) == []
    assert int8.provenance["attention"] == "sdpa"
    assert int8.mixed_provenance == {**int8.provenance, "attention": "sdpa per frame"}


def test_mixed_frames_need_a_network_that_takes_them() -> None:
    with pytest.raises(ConfigError, match="it is a pyramid"):
        producer(PYRAMID).produce_mixed([frames(1)[0]], [(64, 96)])
