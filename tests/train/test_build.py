from __future__ import annotations

import pytest
import torch

from fcache.config import SegmenterConfig, load_recipe, recipe_names, resolve
from fcache.errors import ConfigError
from fcache.models import ComerAdapter
from fcache.store.layout import ViewLayout
from fcache.train.build import build_segmenter, num_parameters
from tests.train.making import tiny


def plain(dim: int) -> ViewLayout:
    return ViewLayout(True, (dim,) * 4, (16,) * 4, "float16")


PYRAMID = ViewLayout(False, (96, 192, 384, 768), (4, 8, 16, 32), "float16")


def on_meta(config: SegmenterConfig, layout: ViewLayout, num_categories: int):
    with torch.device("meta"):
        return build_segmenter(config, layout, num_categories)


@pytest.mark.parametrize(("dim", "trained"), [(1024, 43_592_189), (1536, 70_900_029)])
def test_recipe_of_vipseg_trains_the_official_number_of_parameters(dim: int, trained: int) -> None:
    config = resolve(SegmenterConfig, load_recipe("segmenter_vipseg"), {})
    module = on_meta(config, plain(dim), 124)
    assert num_parameters(module) == trained
    assert module.adapter.extractors[0].attention.layout[0] == dim // 64


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith(("segm", "camvid"))])
def test_every_recipe_builds(name: str) -> None:
    config = resolve(SegmenterConfig, load_recipe(name), {})
    layout = PYRAMID if config.adapter == "none" else plain(384)
    module = on_meta(config, layout, 11)
    assert module.masked_decoder.query_features.num_embeddings == config.num_queries
    assert len(module.masked_decoder.layers) == config.num_layers
    assert len(module.pixel_decoder.layers) == config.num_encoder_layers
    assert getattr(module.adapter, "checkpointing", False) == config.checkpointing


def test_seed_alone_decides_the_first_values() -> None:
    torch.manual_seed(1)
    first = build_segmenter(tiny(seed=5), plain(64), 3).state_dict()
    state = torch.random.get_rng_state()
    second = build_segmenter(tiny(seed=5), plain(64), 3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_segmenter(tiny(seed=6), plain(64), 3).state_dict()
    assert not torch.equal(first["adapter.level_embed"], other["adapter.level_embed"])


def test_comer_is_built_with_its_settings() -> None:
    module = on_meta(tiny(adapter="comer", mrfp_ratio=0.5, mrfp_residual=True), plain(64), 3)
    assert isinstance(module.adapter, ComerAdapter)
    assert module.adapter.residual
    assert module.adapter.mrfps[0].linear1.out_features == 32


def test_adapter_of_another_kind_of_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match="this view has strides 16, 16, 16, 16"):
        on_meta(tiny(adapter="none"), plain(64), 3)
    with pytest.raises(ConfigError, match="holds a pyramid at strides 4, 8, 16, 32"):
        on_meta(tiny(adapter="comer"), PYRAMID, 3)
    with pytest.raises(ConfigError, match="131 channels, which heads of 64 do not fill"):
        on_meta(tiny(), plain(131), 3)
