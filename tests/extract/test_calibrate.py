from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest
import torch

from fcache.errors import CacheCorruptError, FeatureError
from fcache.extract.calibrate import (
    FLOOR,
    Calibration,
    Maxima,
    calibrate_frames,
    choose_frames,
    merge_maxima,
)
from tests.backbones.tiny import backbone, canvas

SIZES = [(64, 96), (96, 64), (32, 32), (64, 96), (64, 64)]
AREAS = [(50, 90), (96, 64), (17, 31), (64, 96), (64, 1)]


def drawn():
    return [canvas(1, h, w, seed=index)[0].numpy() for index, (h, w) in enumerate(SIZES)]


def maxima(*stages: list[float], num_frames: int = 1) -> Maxima:
    return Maxima(tuple(np.array(stage, np.float32) for stage in stages), num_frames)


@pytest.mark.parametrize("model", ["vit_small_swiglu_reg2", "resnet18"])
def test_maxima_are_those_of_each_frame_in_valid_tokens(model) -> None:
    net = backbone(model)
    found = calibrate_frames(net, drawn(), AREAS)
    assert found.num_frames == 5
    for index, stage in enumerate(net.description.stages):
        wanted = np.zeros(stage.channels, np.float32)
        for frame, (height, width) in zip(drawn(), AREAS, strict=True):
            output = net(torch.from_numpy(frame[None]), (height, width))[index][0]
            rows, columns = -(-height // stage.stride), -(-width // stage.stride)
            seen = np.abs(output.numpy()[:rows, :columns]).reshape(-1, stage.channels).max(0)
            wanted = np.maximum(wanted, seen)
        assert found.absmax[index].dtype == np.float32
        assert np.array_equal(found.absmax[index], wanted)


def test_tokens_without_a_valid_pixel_are_skipped() -> None:
    net = backbone("vit_small_swiglu_reg2")
    frame = drawn()[0]
    small = calibrate_frames(net, [frame], [(32, 32)])
    outputs = net(torch.from_numpy(frame[None]), (32, 32))
    whole = [np.abs(output.numpy()).reshape(-1, 32).max(0) for output in outputs]
    assert all((one <= all_).all() for one, all_ in zip(small.absmax, whole, strict=True))
    assert any((one < all_).any() for one, all_ in zip(small.absmax, whole, strict=True))


def test_result_does_not_depend_on_who_looked_at_which_frame() -> None:
    net = backbone("vit_small_swiglu_reg2")
    whole = Calibration.from_maxima(calibrate_frames(net, drawn(), AREAS))
    numbers = list(range(5))
    for seed in range(4):
        random.Random(seed).shuffle(numbers)
        cut = 1 + seed
        parts = [
            calibrate_frames(net, [drawn()[i] for i in part], [AREAS[i] for i in part])
            for part in (numbers[:cut], numbers[cut:])
        ]
        merged = Calibration.from_maxima(merge_maxima(parts))
        assert merged.sha256 == whole.sha256
        assert merged.num_frames == 5
    with pytest.raises(ValueError, match="no maxima"):
        merge_maxima([])


def test_dead_channels_get_a_fraction_of_the_median_live_one() -> None:
    found = Calibration.from_maxima(maxima([0, 3, 1e-9, 64, 5, 0], [0, 0], [0, 7]))
    # The live ones are 1e-9, 3, 5 and 64: their median is 4.
    floor = 4 * FLOOR
    assert found.channel_scales[0].tolist() == [floor, 3, floor, 64, 5, floor]
    assert found.channel_scales[1].tolist() == [1, 1]
    assert found.channel_scales[2].tolist() == [7 * FLOOR, 7]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_cannot_calibrate(bad) -> None:
    with pytest.raises(FeatureError, match=r"calibration, stage 1: .* NaN or infinity"):
        Calibration.from_maxima(maxima([1, 2], [1, bad]))
    for scales in ([1.0, bad], [1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="expected a positive one a channel"):
            Calibration((np.array(scales, np.float32),), 1)


def test_nan_of_a_frame_survives_the_frames_after_it() -> None:
    net = backbone("vit_small_swiglu_reg2")
    with torch.no_grad():
        net.trunk.vit.blocks[0].ls1.gamma[3] = torch.nan
    with pytest.raises(FeatureError, match="stage 0"):
        Calibration.from_maxima(calibrate_frames(net, drawn(), AREAS))


def test_json_reads_back_every_bit() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(1, 0x7F800000, 3000, dtype=np.uint32).view(np.float32)
    edges = np.array([1e-45, 3.4028235e38, 0.1, 1 / 3, 16777217], np.float32)
    made = Calibration((bits, edges), 500)
    read = Calibration.from_json(json.loads(json.dumps(made.to_json())))
    assert read == made
    assert read.num_frames == 500
    for one, other in zip(read.channel_scales, made.channel_scales, strict=True):
        assert one.tobytes() == other.tobytes()


def test_json_whose_values_are_not_those_of_its_hash_is_refused() -> None:
    written = Calibration((np.ones(3, np.float32),), 2).to_json()
    written["channel_scales"][0][1] = 1.5
    with pytest.raises(CacheCorruptError, match="the channel scales hash to"):
        Calibration.from_json(written)


def test_hash_names_values_and_shapes_and_nothing_else() -> None:
    one = np.array([1, 2, 3, 4], np.float32)
    made = Calibration((one,), 10)
    assert made == Calibration((one.astype(np.float64),), 20)
    assert hash(made) == hash(Calibration((one,), 20))
    changed = one.copy()
    changed[2] = np.nextafter(changed[2], np.float32(9))
    others = [Calibration((changed,), 10), Calibration((one[:2], one[2:]), 10)]
    assert len({made.sha256, *(other.sha256 for other in others)}) == 3
    assert made not in others


def test_calibration_survives_pickling_and_cannot_be_changed() -> None:
    made = Calibration((np.array([1, 2], np.float32),), 3)
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(ValueError, match="read-only"):
        made.channel_scales[0][0] = 5


def sources(count: int, num_frames: int = 10, split: str | None = None):
    return [(f"{index * 7919 % 10007:05d}", split, num_frames) for index in range(count)]


def test_one_middle_frame_of_each_of_the_first_hashes_where_sources_abound() -> None:
    given = sources(40, num_frames=9)
    chosen = choose_frames(given, at_most=15)
    assert [indexes for _, indexes in chosen] == [(4,)] * 15
    assert [given[position][0] for position, _ in chosen] == sorted(s[0] for s in given)[:15]


def test_few_sources_share_evenly_and_short_ones_give_all_they_have() -> None:
    given = [("b", None, 100), ("a", None, 2), ("c", None, 100), ("d", None, 1)]
    chosen = dict(choose_frames(given, at_most=24))
    assert chosen[1] == (0, 1)
    assert chosen[3] == (0,)
    assert {len(chosen[0]), len(chosen[2])} == {10, 11}
    assert len(chosen[0]) == 11  # the odd one goes to the first hash
    assert chosen[2] == (5, 15, 25, 35, 45, 55, 65, 75, 85, 95)


@pytest.mark.parametrize("at_most", [1, 7, 99, 100, 101, 500, 5000])
@pytest.mark.parametrize("count", [1, 3, 100, 600])
def test_choice_is_as_large_as_allowed_and_holds_no_frame_twice(count, at_most) -> None:
    rng = random.Random(count)
    given = [(content, split, rng.randint(0, 12)) for content, split, _ in sources(count)]
    chosen = choose_frames(given, at_most)
    frames = [(position, index) for position, indexes in chosen for index in indexes]
    assert len(frames) == len(set(frames)) == min(at_most, sum(size for *_, size in given))
    assert all(0 <= index < given[position][2] for position, index in frames)


def test_choice_does_not_depend_on_the_order_of_the_list() -> None:
    given = sources(80, num_frames=30)
    wanted = {given[position][0]: indexes for position, indexes in choose_frames(given)}
    random.Random(1).shuffle(given)
    assert {given[position][0]: indexes for position, indexes in choose_frames(given)} == wanted
    assert sum(len(indexes) for indexes in wanted.values()) == 500


def test_only_the_train_split_calibrates_where_there_is_one() -> None:
    given = [*sources(5, split="val"), ("99990", "train", 3), ("99991", None, 3)]
    assert choose_frames(given) == [(5, (0, 1, 2))]
    assert {position for position, _ in choose_frames(given[:5])} == set(range(5))


def test_same_content_counts_once() -> None:
    given = [("a", "train", 4), ("b", "train", 4), ("a", "train", 4)]
    assert choose_frames(given) == [(0, (0, 1, 2, 3)), (1, (0, 1, 2, 3))]
    assert choose_frames([]) == []
