from __future__ import annotations

import json

import pytest
import torch

from fcache.errors import WeightsError
from fcache.models import (
    ComerAdapter,
    HungarianMatcher,
    MaskedDecoder,
    PixelDecoder,
    PyramidAdapter,
    Segmenter,
    SetCriterion,
    ViTAdapter,
)
from fcache.models.official import SEGMENTER_KEYS, export_official, import_official, part_of
from tests.models.tiny import DIM, NUM_CATEGORIES, segmenter
from tests.shared import SHARED, needs_shared

KEYS = SHARED / "vectors" / "keys"
SEGMENTERS = {
    "segmenter_coco_image_vitadapterL": (1024, 16, 133, False),
    "segmenter_minvis_vitadapterL": (1024, 16, 124, False),
    "segmenter_ctvis_vitadapterL": (1024, 16, None, True),
    "segmenter_minvis_vitadapterG": (1536, 24, None, False),
    "online_dvisplus_vitadapterL": (1024, 16, 124, True),
    "offline_dvisplus_vitadapterL": (1024, 16, 124, True),
}


def recorded(name):
    content = json.loads((KEYS / f"keys_{name}.json").read_text())
    return content["meta"], {key: tuple(shape) for key, (shape, _) in content["keys"].items()}


def full_size(dim, num_heads, num_categories, reid):
    """A segmenter of full size that holds no memory."""
    with torch.device("meta"):
        adapter = ViTAdapter(dim, num_heads)
        model = Segmenter(
            adapter, PixelDecoder(adapter.channels), MaskedDecoder(num_categories, reid=reid)
        )
        return model, SetCriterion(num_categories, HungarianMatcher())


def shapes(model, criterion):
    state = {k: tuple(t.shape) for k, t in model.state_dict().items()}
    return state | {f"criterion.{k}": tuple(t.shape) for k, t in criterion.state_dict().items()}


@needs_shared
@pytest.mark.parametrize("name", SEGMENTERS)
def test_keys_and_shapes_are_the_official_ones_one_to_one_and_back(name) -> None:
    meta, official = recorded(name)
    dim, num_heads, num_categories, reid = SEGMENTERS[name]
    num_categories = num_categories or official["criterion.empty_weight"][0] - 1
    model, criterion = full_size(dim, num_heads, num_categories, reid)
    ours = shapes(model, criterion)
    segmenter_keys = [key for key in official if part_of(key) == "segmenter"]
    translated = {SEGMENTER_KEYS.ours(key): official[key] for key in segmenter_keys}
    assert len(translated) == len(segmenter_keys)
    assert translated == ours
    assert all(SEGMENTER_KEYS.official(SEGMENTER_KEYS.ours(key)) == key for key in segmenter_keys)
    prefixes = {
        "backbone": "backbone.vit_module.",
        "tracker": "tracker.",
        "refiner": "refiner.",
        "segmenter": ("backbone.", "sem_seg_head.", "criterion."),
    }
    for key in official:
        assert key.startswith(prefixes[part_of(key)])
    if name.startswith("segmenter_"):
        num_trained = sum(p.numel() for p in model.parameters())
        assert num_trained == meta["params_trainable"]


@needs_shared
@pytest.mark.parametrize("name", ["tracker_dvis_v1", "refiner_dvis_v1"])
def test_keys_of_later_stages_are_recognised(name) -> None:
    _, official = recorded(name)
    assert {part_of(key) for key in official} == {name.split("_")[0]}


@needs_shared
def test_a_full_checkpoint_goes_in_and_comes_out_unchanged() -> None:
    _, official = recorded("offline_dvisplus_vitadapterL")
    model, criterion = full_size(*SEGMENTERS["offline_dvisplus_vitadapterL"])
    checkpoint = {key: torch.empty(shape, device="meta") for key, shape in official.items()}
    imported = import_official(checkpoint, shapes(model, criterion))
    assert imported.is_complete
    assert (len(imported.backbone), len(imported.tracker), len(imported.refiner)) == (343, 126, 192)
    back = export_official(
        imported.tensors, [imported.backbone, imported.tracker, imported.refiner]
    )
    assert back.keys() == checkpoint.keys()
    assert all(back[key] is tensor for key, tensor in checkpoint.items())


def state_shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_what_does_not_fit_is_listed_by_kind() -> None:
    model = segmenter()
    expected = state_shapes(model)
    checkpoint = export_official(model.state_dict())
    del checkpoint["backbone.level_embed"]
    checkpoint["sem_seg_head.predictor.class_embed.bias"] = torch.zeros(134)
    checkpoint["sem_seg_head.predictor.reid_embed.layers.0.bias"] = torch.zeros(32)
    checkpoint["optimizer.state"] = torch.zeros(1)
    checkpoint["backbone.vit_module.norm.bias"] = torch.zeros(DIM)
    imported = import_official(checkpoint, expected)
    assert imported.missing == ("adapter.level_embed",)
    assert imported.extra == (
        "optimizer.state",
        "sem_seg_head.predictor.reid_embed.layers.0.bias",
    )
    [reshaped] = imported.reshaped
    assert reshaped.name == "masked_decoder.class_head.bias"
    assert (reshaped.found, reshaped.expected) == ((134,), (NUM_CATEGORIES + 1,))
    assert list(imported.backbone) == ["backbone.vit_module.norm.bias"]
    assert not imported.is_complete
    missing, unexpected = model.load_state_dict(imported.tensors, strict=False)
    assert not unexpected
    assert set(missing) == {"adapter.level_embed", "masked_decoder.class_head.bias"}


def test_a_loaded_checkpoint_predicts_what_its_source_predicts() -> None:
    source, other = segmenter(reid=True), segmenter(reid=True)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01)
    imported = import_official(export_official(source.state_dict()), state_shapes(other))
    other.load_state_dict(imported.tensors)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_the_old_name_of_the_query_features_is_read() -> None:
    model = segmenter()
    checkpoint = export_official(model.state_dict())
    features = checkpoint.pop("sem_seg_head.predictor.query_feat.weight")
    checkpoint["sem_seg_head.predictor.static_query.weight"] = features
    assert import_official(checkpoint, state_shapes(model)).is_complete


def test_norms_of_a_swin_are_the_backbones_not_the_adapters() -> None:
    adapter = PyramidAdapter((96, 192, 384, 768))
    with torch.device("meta"):
        model = Segmenter(adapter, PixelDecoder(adapter.channels), MaskedDecoder(3))
    checkpoint = export_official(model.state_dict())
    names = ["backbone.norm1.weight", "backbone.layers.0.blocks.0.norm1.bias"]
    checkpoint |= {name: torch.zeros(192) for name in names}
    imported = import_official(checkpoint, state_shapes(model))
    assert imported.is_complete
    assert list(imported.backbone) == names


def test_tensors_without_an_official_name_are_not_exported() -> None:
    model = segmenter(ComerAdapter(DIM, 2, prior_width=8))
    with pytest.raises(WeightsError, match=r"tensors have no official name .*'adapter\.mrfps\.0"):
        export_official(model.state_dict())
