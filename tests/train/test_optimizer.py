from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fcache.models import MaskedDecoder, PixelDecoder, Segmenter, ViTAdapter
from fcache.models.official import SEGMENTER_KEYS
from fcache.train.optimizer import MultiStep, make_optimizer, parameter_groups
from fcache.train.synced_norm import SyncedBatchNorm2d
from tests.shared import SHARED, needs_shared

SEGMENTERS = {
    "segmenter_coco_image_vitadapterL": (1024, 16, 133, False),
    "segmenter_minvis_vitadapterL": (1024, 16, 124, False),
    "segmenter_ctvis_vitadapterL": (1024, 16, 40, True),
    "segmenter_minvis_vitadapterG": (1536, 24, 124, False),
}


@needs_shared
@pytest.mark.parametrize("name", SEGMENTERS)
def test_groups_are_the_official_ones(name) -> None:
    official = json.loads((SHARED / "vectors" / "keys" / f"optim_groups_{name}.json").read_text())
    dim, num_heads, num_categories, reid = SEGMENTERS[name]
    with torch.device("meta"):
        adapter = ViTAdapter(dim, num_heads, norm=SyncedBatchNorm2d)
        decoder = MaskedDecoder(num_categories, reid=reid)
        model = Segmenter(adapter, PixelDecoder(adapter.channels), decoder)
    groups = parameter_groups(model, lr=1e-4, weight_decay=0.05, factors={"adapter.": 0.1})
    ours = {
        SEGMENTER_KEYS.official(parameter): (group.lr, group.weight_decay)
        for group in groups
        for parameter in group.names
    }
    assert len(ours) == sum(1 for _ in model.parameters())
    assert ours.keys() == official.keys()
    for key, (lr, weight_decay) in official.items():
        assert ours[key] == (pytest.approx(lr), weight_decay), key


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2))
    model[0].weight.requires_grad = False
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5)
    told = {(group.lr, group.weight_decay): group.names for group in groups}
    assert told == {(1.0, 0.5): ("0.bias",), (1.0, 0.0): ("1.weight", "1.bias", "2.weight")}


def test_rate_falls_at_each_milestone_and_keeps_the_ratio_of_groups() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = parameter_groups(model, lr=1.0, weight_decay=0.0, factors={"0.": 0.1})
    optimizer = make_optimizer(groups)
    schedule = MultiStep((3, 5), 0.5)
    rates = []
    for step in (0, 2, 3, 4, 5, 9):
        largest = schedule.apply(optimizer, step)
        assert [group["lr"] for group in optimizer.param_groups] == [largest, largest * 0.1]
        rates.append(largest)
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_rate_of_a_step_does_not_depend_on_the_steps_before() -> None:
    optimizer = make_optimizer(parameter_groups(nn.Linear(2, 2), lr=1.0, weight_decay=0.0))
    schedule = MultiStep((3,), 0.1)
    assert schedule.apply(optimizer, 7) == pytest.approx(0.1)
    assert schedule.apply(optimizer, 0) == 1.0
