"""The backbone in the loop: what it gives equals the cache, and what it takes to train it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fcache.backbones import load
from fcache.backbones.trained import TrainedPyramid
from fcache.config import BackboneSettings
from fcache.data.features import CachedFeatures
from fcache.data.sampling import ClipRequest
from fcache.errors import ConfigError, FeatureError, InterruptedJobError, WeightsError
from fcache.models.official import export_official
from fcache.store.cache import StoreCache
from fcache.store.layout import Bucket
from fcache.train.data import open_data, train_loader
from fcache.train.distributed import World
from fcache.train.optimizer import parameter_groups
from fcache.train.plan import plan_training
from fcache.train.rounding import Rounding
from fcache.train.source import open_source
from tests.extract.making import PYRAMID, extract
from tests.extract.test_compact import compact
from tests.train.making import VIEW, checkpoint_bytes, tiny, train
from tests.train.test_job import interrupt_at, lines

CPU = torch.device("cpu")
CROPS = {
    **VIEW,
    "size": "none",
    "short_side": "64..80",
    "crop": "60x64",
    "crops": "2",
}
# Both kinds of backbone, both kinds of rounding, patch 14, full views and views of crops.
KINDS: dict[str, dict[str, Any]] = {
    "vit float16": VIEW,
    "vit int8 crops": {**CROPS, "dtype": "int8"},
    "vit bfloat16 patch 14": {**VIEW, "dtype": "bfloat16", "patch": 14, "size": "56x84"},
    "pyramid float16 crops": {**PYRAMID, **CROPS},
    "pyramid int8": {**PYRAMID, **VIEW, "dtype": "int8"},
}


@pytest.fixture(scope="module")
def made(scenes: Path, tmp_path_factory: pytest.TempPathFactory):
    """Makes the cache of a kind once."""
    caches: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in caches:
            caches[kind] = tmp_path_factory.mktemp("live") / "cache"
            settings = dict(KINDS[kind])
            if settings["dtype"] == "int8":
                settings.pop("dtype")
                compact(scenes / "manifest.toml", caches[kind], **settings)
            else:
                extract(scenes / "manifest.toml", caches[kind], **settings)
        return caches[kind]

    return make


def settings_of(kind: str) -> dict[str, Any]:
    return {
        "adapter": "none" if kind.startswith("pyramid") else "vit",
        "steps": 3,
        "val_every": 2,
        "val_frames": 2,
    }


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_the_cache_equals_training_on_the_rounded_live_backbone(
    made, tmp_path: Path, kind: str
) -> None:
    told: dict[str, list[dict[str, Any]]] = {"cache": [], "live": []}
    saved = {}
    for source, changes in (("cache", {}), ("live", {"live_rounded": True})):
        run = tmp_path / source
        result = train(
            made(kind), run, source=source, report=told[source].append,
            **settings_of(kind), **changes,
        )  # fmt: skip
        saved[source] = checkpoint_bytes(result.last.folder)
    assert losses(told["cache"]) == losses(told["live"])
    assert saved["cache"] == saved["live"]
    for written in ("train", "val"):
        assert lines(tmp_path / "cache", written) == lines(tmp_path / "live", written)


def test_live_outputs_are_left_as_they_are_unless_asked(made, tmp_path: Path) -> None:
    told: dict[str, list[dict[str, Any]]] = {"cache": [], "live": []}
    for source, events in told.items():
        train(made("vit int8 crops"), tmp_path / source, source=source, report=events.append)
    for cached, live in zip(losses(told["cache"]), losses(told["live"]), strict=True):
        assert cached != live
        assert cached == pytest.approx(live, rel=0.05)


@pytest.mark.parametrize("kind", ["vit float16", "vit bfloat16 patch 14", "pyramid int8"])
def test_windows_are_cut_out_of_what_the_backbone_gives_for_the_frame(made, kind: str) -> None:
    config = tiny(
        **settings_of(kind), crop=32, source="live", live_rounded=True, num_frames=2, range_frames=1
    )
    data = open_data(made(kind), config)
    live = open_source(config, data, CPU).features(data.view)
    for features in (CachedFeatures(data.view), live):
        with train_loader(data, config, World(), features, 0) as loader:
            batches = [step.micro_batches[0].to(CPU) for step in loader]
        if features is live:
            found = batches
        else:
            wanted = batches
    for one, other in zip(found, wanted, strict=True):
        assert one.pixels.shape[-2:] == (32, 32)
        assert torch.equal(one.pixels, other.pixels)
        assert one.extents == other.extents
        for mine, stored in zip(one.stages, other.stages, strict=True):
            assert torch.equal(mine, stored)


def test_windows_of_canvases_of_several_sizes_share_a_batch(scenes: Path, tmp_path: Path) -> None:
    """Windows are of one size where the canvases are not."""
    cache = tmp_path / "cache"
    extract(scenes / "manifest.toml", cache, **VIEW)
    data = open_data(cache, tiny(crop=64))
    wide, high = data.videos[0].draws[0], data.videos[1].draws[0]
    config = tiny(crop=64, source="live", live_rounded=True)
    live = open_source(config, data, CPU).features(data.view)

    class Canvases:
        """Cuts one canvas smaller than it is stored."""

        def read(self, request, window, out) -> None:
            whole = data.view.read(request.video.video_id, request.frames, stages=()).pixels
            out[...] = whole[:, : out.shape[1], : out.shape[2]]

    live.canvases = Canvases()
    small = replace(high, item=replace(high.item, bucket=Bucket(64, 64)))
    requests = [
        ClipRequest(wide, (0,), (0, 2, 4, 4)),
        ClipRequest(small, (1,), (0, 0, 4, 4)),
    ]
    together = live.empty(requests)
    for index, request in enumerate(requests):
        live.read(request, together.rows(index, index + 1))
    assert together.pixels is not None
    assert together.pixels.shape == (2, 64, 96, 3)
    pixels = torch.from_numpy(together.pixels).permute(0, 3, 1, 2).float()
    found = live.stages(together, requests, pixels, torch.float32)
    alone = [live.backbone.stages(pixels[:1]), live.backbone.stages(pixels[1:, :, :, :64])]
    for index, stage in enumerate(found):
        first, second = (outputs[index].half().float() for outputs in alone)
        assert torch.equal(stage, torch.cat([first[:, :, 2:6], second[:, :, :4]]))


def test_passes_of_the_backbone_are_full_where_its_outputs_are_rounded(made) -> None:
    config = tiny(source="live")
    data = open_data(made("vit float16"), config)
    live = open_source(config, data, CPU).features(data.view)
    pixels = torch.randn(3, 3, 64, 96)
    one_by_one = live.stages(None, data.frames[:3], pixels, torch.float32)
    live.batch = 2
    passes = []
    run = live.backbone.stages
    live.backbone.stages = lambda frames: passes.append(len(frames)) or run(frames)
    in_twos = live.stages(None, data.frames[:3], pixels, torch.float32)
    assert passes == [2, 1]
    live.rounding = Rounding("float32")
    live.stages(None, data.frames[:3], pixels, torch.float32)
    assert passes == [2, 1, 2, 2]
    for mine, other in zip(in_twos, one_by_one, strict=True):
        torch.testing.assert_close(mine, other)


def test_other_weights_than_the_caches_are_refused_with_both_hashes(made, tmp_path: Path) -> None:
    cache = made("vit float16")
    wanted = StoreCache(cache).view().identity["backbone"]["weights_sha256"]
    with pytest.raises(ConfigError) as caught:
        train(cache, tmp_path / "run", source="live", weights="random:1")
    found = load(
        BackboneSettings(model="test_vit", weights="random:1", blocks=(1, 2, 4, 5)), device=CPU
    ).weights_sha256
    assert f"weights='random:1' hash to {found}, those of the view to {wanted}" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_nowhere_are_told(made, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.safetensors"):
        train(made("vit float16"), tmp_path, source="live", weights="gone.safetensors")


def test_features_are_not_read_from_the_disk(made, tmp_path: Path) -> None:
    """Nothing is missed where every stored stage output is gone."""
    cache = tmp_path / "cache"
    shutil.copytree(made("pyramid float16 crops"), cache)
    for path in cache.glob("*/*/stage*/c/**/*"):
        if path.is_file():
            path.unlink()
    settings = {**settings_of("pyramid"), "source": "live", "live_rounded": True}
    found = train(cache, tmp_path / "without", **settings)
    wanted = train(made("pyramid float16 crops"), tmp_path / "with", **settings)
    assert checkpoint_bytes(found.last.folder) == checkpoint_bytes(wanted.last.folder)


TRAINED: dict[str, Any] = {
    "adapter": "none",
    "source": "live",
    "backbone": {"trainable": True},
    "steps": 4,
    "val_every": 2,
    "lr": 1e-2,
}


def test_trained_backbone_resumes_bit_for_bit(made, tmp_path: Path) -> None:
    cache = made("pyramid float16 crops")
    whole = train(cache, tmp_path / "whole", **TRAINED)
    run = tmp_path / "run"
    with pytest.raises(InterruptedJobError):
        train(cache, run, report=interrupt_at(1, []), **TRAINED)
    again = train(cache, run, **TRAINED)
    assert checkpoint_bytes(again.last.folder) == checkpoint_bytes(whole.last.folder)
    for written in ("train", "val"):
        assert lines(run, written) == lines(tmp_path / "whole", written)


def test_trained_backbone_learns_all_but_its_batch_norms(made, tmp_path: Path) -> None:
    cache = made("pyramid float16 crops")
    result = train(cache, tmp_path / "run", **{**TRAINED, "weight_decay": 0.0, "val_every": None})
    trained = {
        name.removeprefix("backbone.net."): tensor
        for name, tensor in load_file(result.last.model).items()
        if name.startswith("backbone.")
    }
    first = load(BackboneSettings(model="test_resnet", weights="random:0"), device=CPU)
    before = first.trunk.net.state_dict()
    assert trained.keys() == before.keys()
    norms = {
        f"{path}.{leaf}"
        for path, module in first.trunk.net.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for leaf in module.state_dict()
    }
    assert norms
    for name, tensor in trained.items():
        assert torch.equal(tensor, before[name]) == (name in norms), name
    methods = (tmp_path / "run" / "methods.md").read_text()
    assert "The backbone test_resnet trains with the rest" in methods
    assert "0.001 in the backbone" in methods
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    assert "[backbone]\ntrainable = true" in recipe
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["views"]["train"] == StoreCache(cache).view().key


def test_trained_backbone_has_a_rate_of_its_own_and_no_decay_where_the_official_has_none() -> None:
    swin = TrainedPyramid.outline(BackboneSettings(model="swin_tiny_patch4_window7_224"))
    whole = torch.nn.ModuleDict({"backbone": swin, "head": torch.nn.Linear(2, 2)})
    groups = parameter_groups(whole, lr=1.0, weight_decay=0.05, factors={"backbone.": 0.1})
    rates = {name: (g.lr, g.weight_decay) for g in groups for name in g.names}
    assert rates["head.weight"] == (1.0, 0.05)
    assert rates["backbone.net.patch_embed.proj.weight"] == (0.1, 0.05)
    assert rates["backbone.net.patch_embed.norm.bias"] == (0.1, 0.0)
    tables = [name for name in rates if name.endswith("relative_position_bias_table")]
    assert tables
    assert {rates[name] for name in tables} == {(0.1, 0.0)}


def test_trained_backbone_trains_in_bfloat16_and_starts_from_a_frozen_run(
    made, tmp_path: Path
) -> None:
    cache = made("pyramid float16 crops")
    frozen = train(cache, tmp_path / "frozen", adapter="none", steps=1)
    events: list[dict[str, Any]] = []
    settings = {**TRAINED, "steps": 2, "amp": "bfloat16", "init": frozen.last.folder}
    result = train(cache, tmp_path / "run", report=events.append, **settings)
    assert all(loss == loss for loss in losses(events))
    again = train(cache, tmp_path / "next", **{**TRAINED, "steps": 1, "init": result.last.folder})
    begun, left = load_file(again.last.model), load_file(result.last.model)
    names = [name for name in left if name.startswith("backbone.net.")]
    assert names
    for name in names:  # one step of Adam moves a value by its rate
        torch.testing.assert_close(begun[name], left[name], rtol=0, atol=2e-3)


def test_plan_says_what_the_backbone_would_cost_and_that_it_trains(made) -> None:
    cache = made("pyramid float16 crops")
    frozen = plan_training(cache, tiny(adapter="none", steps=5, val_every=2, num_frames=1))
    assert frozen.backbone_runs == "cached"
    assert (frozen.live_frames, frozen.live_val_frames) == (10, 3 * frozen.num_val_frames)
    trained = plan_training(cache, tiny(**TRAINED))
    assert trained.backbone_runs == "trained"
    net = load(BackboneSettings(model="test_resnet", weights="random:0"), device=CPU).trunk.net
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    wanted = sum(p.numel() for p in net.parameters()) - sum(
        p.numel() for norm in norms for p in norm.parameters()
    )
    assert trained.num_by_part["backbone"] == wanted
    assert trained.num_trained == frozen.num_trained + wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "cache"}, "source=cache may read what it gave before"),
        ({"source": "auto"}, "source=auto may read what it gave before"),
        ({"adapter": "vit"}, "adapter=vit is of plain ViTs, which stay frozen"),
        ({"live_rounded": True}, "would round away gradients"),
    ],
)
def test_trained_backbone_is_refused_where_it_cannot_be(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**{**TRAINED, **changes})


def test_plain_vit_does_not_train(made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'test_vit' is a plain ViT, which stays frozen"):
        train(made("vit float16"), tmp_path / "run", **TRAINED)


def test_copies_are_not_rounded_twice(made) -> None:
    config = tiny(source="live", live_rounded=True)
    data = open_data(made("vit float16"), config)
    source = open_source(config, data, CPU)
    data.view.identity["derived_from"] = "another"
    with pytest.raises(ConfigError, match="is a copy, whose values were rounded before"):
        source.features(data.view)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (
            "float16",
            1e5,
            r"stage 1: the features reach 1e\+05, float16 holds up to 6.55e\+04;",
        ),
        ("bfloat16", float("nan"), "stage 1: the features hold NaN or infinity"),
        ("float32", float("-inf"), "stage 1: the features hold NaN or infinity"),
        ("int8", 1e8, r"stage 1: the features reach 1e\+08, more than 8.3e\+06 times"),
    ],
)
def test_values_that_an_extraction_would_refuse_are_refused(dtype, value, message) -> None:
    rounding = Rounding(dtype, (torch.ones(3),) * 4)
    stage = torch.full((1, 2, 2, 3), 127.0)
    assert torch.equal(rounding(1, stage, torch.float32), stage)
    stage[0, 1, 0, 2] = value
    with pytest.raises(FeatureError, match=message):
        rounding(1, stage, torch.float32)


def test_clips_whose_features_cannot_be_rounded_are_named(made) -> None:
    config = tiny(source="live", live_rounded=True)
    data = open_data(made("vit float16"), config)
    live = open_source(config, data, CPU).features(data.view)
    run = live.backbone.stages
    live.backbone.stages = lambda frames: [stage * 1e6 for stage in run(frames)]
    with pytest.raises(FeatureError, match=r"^video '.*' frames .*: stage 0: the features reach"):
        live.stages(None, data.frames[:1], torch.randn(1, 3, 64, 96), torch.float32)


def test_left_out_backbone_of_an_official_checkpoint_is_told(made, tmp_path: Path) -> None:
    cache = made("pyramid float16 crops")
    frozen = train(cache, tmp_path / "frozen", adapter="none", steps=1)
    official = export_official(load_file(frozen.last.model))
    official["backbone.res2.0.conv1.weight"] = torch.ones(4)
    save_file(official, tmp_path / "official.safetensors")
    events: list[dict[str, Any]] = []
    settings = {**TRAINED, "steps": 1, "init": tmp_path / "official.safetensors"}
    train(cache, tmp_path / "run", report=events.append, **settings)
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any(note.startswith("1 tensors of init are its backbone's") for note in notes)
