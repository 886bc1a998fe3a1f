from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fcache.errors import ConfigError, WeightsError
from fcache.models.official import export_official
from fcache.train.initialise import initialise
from fcache.train.live import TrainedSegmenter
from tests.models.tiny import pyramid_segmenter, segmenter


def changed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    return module


def equal(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of tensors that differ."""
    there = other.state_dict()
    return [
        name for name, tensor in one.state_dict().items() if not torch.equal(tensor, there[name])
    ]


def test_weights_under_our_names_come_in(tmp_path: Path) -> None:
    source = changed(segmenter())
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    for init in (tmp_path, tmp_path / "model.safetensors"):
        target = segmenter()
        told = initialise(target, init)
        assert (told.num_loaded, told.fresh) == (len(source.state_dict()), ())
        assert equal(source, target) == []


def test_weights_under_official_names_come_in(tmp_path: Path) -> None:
    source = changed(segmenter())
    official = export_official(source.state_dict())
    official["criterion.empty_weight"] = torch.ones(6)
    official["backbone.vit_module.cls_token"] = torch.ones(1, 1, 4)
    save_file(official, tmp_path / "official.safetensors")
    target = segmenter()
    told = initialise(target, tmp_path / "official.safetensors")
    assert told.fresh == ()
    assert equal(source, target) == []


@pytest.mark.parametrize("official", [False, True])
def test_head_of_other_categories_starts_afresh(tmp_path: Path, official: bool) -> None:
    source = changed(segmenter())
    source.masked_decoder.class_head = nn.Linear(32, 9)
    tensors = source.state_dict()
    save_file(export_official(tensors) if official else tensors, tmp_path / "coco.safetensors")
    target, drawn = segmenter(), segmenter()
    told = initialise(target, tmp_path / "coco.safetensors")
    heads = ("masked_decoder.class_head.weight", "masked_decoder.class_head.bias")
    assert told.fresh == heads
    found = target.state_dict()
    assert all(torch.equal(found[name], drawn.state_dict()[name]) for name in heads)
    assert all(torch.equal(found[n], t) for n, t in tensors.items() if n not in heads)


def test_other_architectures_are_refused_by_their_first_differences(tmp_path: Path) -> None:
    save_file(segmenter(num_queries=20).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"query_features\.weight' as \[20, 32\], expected \[12"):
        initialise(segmenter(), tmp_path / "a.safetensors")
    state = {**segmenter().state_dict(), "tracker.weight": torch.zeros(2)}
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"it holds 'tracker\.weight', which has no place"):
        initialise(segmenter(), tmp_path / "b.safetensors")
    state = segmenter().state_dict()
    del state["adapter.level_embed"]
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=r"it lacks 'adapter\.level_embed'"):
        initialise(segmenter(), tmp_path / "c.safetensors")


@pytest.mark.parametrize("official", [False, True])
def test_a_reid_head_is_left_out_where_there_is_none(tmp_path: Path, official: bool) -> None:
    source = changed(segmenter(reid=True)).state_dict()
    save_file(export_official(source) if official else source, tmp_path / "dvispp.safetensors")
    target = segmenter()
    told = initialise(target, tmp_path / "dvispp.safetensors")
    assert set(told.left_out) == source.keys() - target.state_dict().keys()
    assert len(told.left_out) >= 4
    assert all(torch.equal(t, source[n]) for n, t in target.state_dict().items())


def test_official_backbone_is_told_where_the_module_trains_its_own(tmp_path: Path) -> None:
    source = changed(pyramid_segmenter())
    official = export_official(source.state_dict())
    official["backbone.res2.0.conv1.weight"] = torch.ones(4)
    save_file(official, tmp_path / "official.safetensors")
    trained = TrainedSegmenter(pyramid_segmenter(), nn.Linear(2, 2))
    told = initialise(trained, tmp_path / "official.safetensors")
    assert told.num_backbone == 1
    assert equal(source, trained) == []
    assert initialise(pyramid_segmenter(), tmp_path / "official.safetensors").num_backbone == 0


def test_pickles_and_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no \.safetensors file") as caught:
        initialise(segmenter(), tmp_path / "model.pkl")
    assert caught.value.run is not None
    assert caught.value.run.startswith(f"fcache weights import '{tmp_path / 'model.pkl'}'")
    with pytest.raises(ConfigError, match=r"absent\.safetensors' does not exist"):
        initialise(segmenter(), tmp_path / "absent.safetensors")
