from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import save_file

from fcache.backbones import load, weights_hash
from fcache.backbones.weights import hash_tensors, random_tensors
from fcache.errors import WeightsError
from tests.backbones.tiny import CPU, backbone, canvas, settings
from tests.shared import SHARED, needs_shared

WEIGHTS = SHARED / "data" / "weights"


def vit_state(model: str = "vit_parity_swiglu", seed: int = 3, **changes):
    """Tensors of a float32 ViT under timm's names; values that float16 holds exactly."""
    loaded = backbone(model, f"random:{seed}", **changes)
    return {
        name.removeprefix("vit."): tensor.half().float()
        for name, tensor in loaded.trunk.state_dict().items()
    }


def in_meta_names(state):
    """timm's names -> those of Meta's DINOv2 files, with what only those hold."""
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in (("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")):
            name = name.replace(ours, theirs)
        renamed["register_tokens" if name == "reg_token" else name] = tensor
    dim = state["cls_token"].shape[-1]
    final = {"norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim)}
    return {**renamed, "mask_token": torch.zeros(1, dim), **final}


def test_random_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (backbone(weights=f"random:{seed}") for seed in (0, 0, 1))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.weights_source == "random:0"
    # A changed stream would orphan every cache of random weights.
    assert first.weights_sha256.startswith("b766d5b5af7d69ee")


def test_random_weights_have_the_documented_spread() -> None:
    shapes = {
        "blocks.0.mlp.fc1.weight": (512, 256),
        "blocks.0.mlp.fc1.bias": (512,),
        "blocks.0.norm1.weight": (256,),
        "blocks.0.ls1.gamma": (256,),
        "pos_embed": (1, 400, 256),
    }
    tensors = random_tensors(shapes, 5)
    values = {name: tensors.read(name) for name in shapes}
    assert abs(values["blocks.0.mlp.fc1.weight"].std() - 1 / 16) < 1e-3
    assert abs(values["pos_embed"].std() - 0.02) < 3e-4
    assert values["blocks.0.mlp.fc1.bias"].abs().max() == 0
    assert values["blocks.0.norm1.weight"].eq(1).all()
    assert values["blocks.0.ls1.gamma"].eq(1).all()


def test_random_tensors_do_not_depend_on_their_neighbours() -> None:
    alone = random_tensors({"a.weight": (3, 4)}, 0).read("a.weight")
    beside = random_tensors({"0.weight": (9, 9), "a.weight": (3, 4)}, 0).read("a.weight")
    assert torch.equal(alone, beside)
    assert not torch.equal(alone, random_tensors({"b.weight": (3, 4)}, 0).read("b.weight"))


def test_random_features_are_not_degenerate() -> None:
    frames = canvas(1, 128, 128)
    for output in backbone("vit_tiny_patch16_224")(frames, (128, 128)):
        assert 0.1 < output.std() < 100
        assert output.flatten(1, 2).std(1).mean() > 0.05


def test_hash_ignores_order_dtype_and_layout_but_not_names_shapes_or_values() -> None:
    a, b = torch.randn(4, 6).half(), torch.randn(3)
    reference = hash_tensors({"a": a, "b": b})
    assert hash_tensors({"b": b.double(), "a": a.float()}) == reference
    assert hash_tensors({"a": a.t().contiguous().t(), "b": b}) == reference
    changed = a.float()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    others = [{"a": changed, "b": b}, {"a": a.reshape(6, 4), "b": b}, {"c": a, "b": b}, {"a": a}]
    assert reference not in [hash_tensors(other) for other in others]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}},
        lambda state: {
            "teacher": {f"backbone.{k}": v for k, v in state.items()},
            "student": {f"backbone.{k}": v + 1 for k, v in state.items()},
        },
        lambda state: {f"backbone.vit_module.{k}": v for k, v in state.items()},
    ],
)
def test_nested_and_prefixed_meta_files_give_the_same_weights(tmp_path, wrap) -> None:
    state = vit_state()
    save_file(state, tmp_path / "timm.safetensors")
    torch.save(wrap(in_meta_names(state)), tmp_path / "meta.pth")
    plain = backbone(weights=tmp_path / "timm.safetensors")
    nested = backbone(weights=tmp_path / "meta.pth")
    assert plain.weights_sha256 == nested.weights_sha256 == hash_tensors(state)
    assert nested.weights_source.startswith("file meta.pth")
    frames = canvas(1, 64, 64)
    assert torch.equal(plain(frames, (64, 64))[3], nested(frames, (64, 64))[3])


def test_half_precision_file_is_upcast_to_the_same_weights(tmp_path) -> None:
    state = vit_state()
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "h.safetensors")
    torch.save({name: tensor.double() for name, tensor in state.items()}, tmp_path / "d.pt")
    half, double = backbone(weights=tmp_path / "h.safetensors"), backbone(weights=tmp_path / "d.pt")
    assert half.weights_sha256 == double.weights_sha256 == hash_tensors(state)
    assert half.trunk.vit.cls_token.dtype == torch.float32


def test_blocks_in_chunks_are_read(tmp_path) -> None:
    state = vit_state()
    chunked = {
        name.replace("blocks.", f"blocks.{int(name.split('.')[1]) // 4}.")
        if name.startswith("blocks.")
        else name: tensor
        for name, tensor in in_meta_names(state).items()
    }
    assert "blocks.1.5.norm1.weight" in chunked
    torch.save({"teacher": chunked}, tmp_path / "chunked.pth")
    assert backbone(weights=tmp_path / "chunked.pth").weights_sha256 == hash_tensors(state)


def test_register_file_of_meta_folds_the_class_position(tmp_path) -> None:
    state = vit_state("vit_small_swiglu_reg2", patch=14)
    class_position = torch.full((1, 1, 32), 0.25)
    meta = in_meta_names(state)
    meta["pos_embed"] = torch.cat([class_position, state["pos_embed"]], 1)
    meta["cls_token"] = state["cls_token"] - class_position
    torch.save(meta, tmp_path / "reg.pth")
    loaded = backbone("vit_small_swiglu_reg2", tmp_path / "reg.pth", patch=14)
    folded = {**state, "cls_token": meta["cls_token"] + class_position}
    assert loaded.weights_sha256 == hash_tensors(folded)
    save_file(folded, tmp_path / "timm.safetensors")
    same = backbone("vit_small_swiglu_reg2", tmp_path / "timm.safetensors", patch=14)
    frames = canvas(1, 56, 84)
    assert torch.equal(loaded(frames, (56, 84))[3], same(frames, (56, 84))[3])


def test_positions_on_another_grid_are_accepted(tmp_path) -> None:
    state = vit_state()
    state["pos_embed"] = torch.randn(1, 1 + 5 * 5, 48).half().float()
    save_file(state, tmp_path / "grid5.safetensors")
    loaded = backbone(weights=tmp_path / "grid5.safetensors")
    assert loaded.trunk.vit.pos_embed.shape == (1, 26, 48)
    embedded = loaded.trunk.embed(torch.zeros(1, 3, 80, 80), (5, 5))
    bias = state["patch_embed.proj.bias"]
    torch.testing.assert_close(embedded[:, 1:], state["pos_embed"][:, 1:] + bias)


def test_kernel_already_resized_to_the_wanted_patch_is_accepted(tmp_path) -> None:
    state = vit_state("vit_small_swiglu_reg2", patch=16)
    assert state["patch_embed.proj.weight"].shape[-1] == 16
    save_file(state, tmp_path / "p16.safetensors")
    assert backbone("vit_small_swiglu_reg2", tmp_path / "p16.safetensors", patch=16)
    with pytest.raises(WeightsError, match=r"1 of another shape \(patch_embed.proj.weight"):
        backbone("vit_small_swiglu_reg2", tmp_path / "p16.safetensors", patch=14)


def test_wrong_architecture_lists_the_first_three_of_each(tmp_path) -> None:
    state = vit_state()
    for index in (0, 1, 2, 3):
        del state[f"blocks.{index}.norm1.bias"]
    state |= {"extra.a": torch.zeros(1), "pos_embed": torch.zeros(1, 50, 40)}
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError) as caught:
        backbone(weights=tmp_path / "wrong.safetensors")
    text = str(caught.value)
    assert "4 missing (blocks.0.norm1.bias, blocks.1.norm1.bias, blocks.2.norm1.bias, ...)" in text
    assert "1 unexpected (extra.a)" in text
    assert "1 of another shape (pos_embed [1, 50, 40] instead of [1, 50, 48])" in text
    assert "Nothing was loaded" in text


def test_deeper_model_does_not_load_into_a_shallower_one(tmp_path) -> None:
    state = vit_state()
    state["blocks.8.norm1.bias"] = torch.zeros(48)
    save_file(state, tmp_path / "deeper.safetensors")
    with pytest.raises(WeightsError, match=r"0 missing; 1 unexpected \(blocks.8.norm1.bias\)"):
        backbone(weights=tmp_path / "deeper.safetensors")


def test_whole_classifier_checkpoint_loads_without_its_head(tmp_path) -> None:
    loaded = backbone("resnet18", "random:7")
    state = {k.removeprefix("net."): v for k, v in loaded.trunk.state_dict().items()}
    whole = {**state, "fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
    torch.save({"state_dict": whole}, tmp_path / "resnet.pth")
    assert backbone("resnet18", tmp_path / "resnet.pth").weights_sha256 == loaded.weights_sha256


@needs_shared
def test_sam2_file_with_meta_names_equals_the_trunk_file(tmp_path) -> None:
    path = WEIGHTS / "sam2_hiera_tiny_trunk_fp16.safetensors"
    opened = backbone("sam2_hiera_tiny", path)
    meta = {"image_encoder.neck.convs.0.conv.bias": torch.zeros(256)}
    for name, tensor in opened.trunk.net.model.state_dict().items():
        for ours, theirs in (("mlp.fc1", "mlp.layers.0"), ("mlp.fc2", "mlp.layers.1")):
            name = name.replace(ours, theirs)
        meta[f"image_encoder.trunk.{name}"] = tensor
    torch.save({"model": meta}, tmp_path / "sam2.pt")
    again = backbone("sam2_hiera_tiny", tmp_path / "sam2.pt")
    assert again.weights_sha256 == opened.weights_sha256
    assert again.weights_source == "file sam2.pt (model.image_encoder.trunk)"


@needs_shared
def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"\d+ missing \(.*\); \d+ unexpected"):
        backbone("sam2_hiera_tiny", WEIGHTS / "mobilesam_tinyvit5m_fp16.safetensors")


def test_hash_without_loading_equals_the_loaded_one(tmp_path) -> None:
    save_file(vit_state(), tmp_path / "x.safetensors")
    for chosen in (settings(), settings(weights=tmp_path / "x.safetensors"), settings("resnet18")):
        loaded = load(chosen, device=CPU)
        assert weights_hash(chosen) == (loaded.weights_sha256, loaded.weights_source)


def test_hash_can_be_left_out() -> None:
    assert load(settings(), device=CPU, keep_hash=False).weights_sha256 == ""


def test_unreadable_files_are_refused_with_the_reason(tmp_path) -> None:
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"model": {}}, tmp_path / "none.pth")
    torch.save({"args": argparse.Namespace(lr=1), "model": vit_state()}, tmp_path / "objects.pth")
    expected = {
        "absent.pth": "does not exist",
        "empty.safetensors": "cannot be read",
        "text.pth": "cannot be read|Python objects",
        "none.pth": "holds no tensors",
        "objects.pth": "Python objects",
        "x.npz": "suffix '.npz'; expected .pth",
        "word": "neither hub nor random:SEED nor a file",
    }
    for name, reason in expected.items():
        with pytest.raises(WeightsError, match=reason):
            backbone(weights=tmp_path / name)
    with pytest.raises(WeightsError, match="no seed; expected random:SEED"):
        backbone(weights="random:x")
