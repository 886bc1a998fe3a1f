"""``fcache weights``: official checkpoints in and out, and what must be refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fcache.backbones import weights_hash
from fcache.models import ComerAdapter, MaskedDecoder, PixelDecoder, PyramidAdapter, Segmenter
from fcache.models.official import export_official
from fcache.models.outline import outline_of
from fcache.train.initialise import initialise
from tests.backbones.test_weights import in_meta_names, vit_state
from tests.backbones.tiny import settings
from tests.cli.running import message, run, run_json
from tests.models.test_official import KEYS, SEGMENTERS, recorded
from tests.models.tiny import DIM, NUM_CATEGORIES, segmenter
from tests.shared import needs_shared

CLASS = "sem_seg_head.predictor.class_embed.weight"


def official(model=None, *, vit=True, **options):
    """A small checkpoint in official names: ViT, segmenter, tracker, refiner and criterion."""
    model = model or segmenter(**options)
    state = export_official(model.state_dict())
    if vit:
        state |= {f"backbone.vit_module.{k}": v for k, v in in_meta_names(vit_state()).items()}
    state["tracker.class_embed.weight"] = torch.randn(3, 4)
    state["refiner.mask_embed.layers.0.bias"] = torch.randn(4)
    state["criterion.empty_weight"] = torch.tensor([1.0] * NUM_CATEGORIES + [0.1])
    return state


def write(path, state):
    """The state in a file as the suffix says: a trainer's, detectron2's zoo's, or plain."""
    if path.suffix == ".pth":
        adam = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
        torch.save({"model": state, "optimizer": adam, "iteration": 7}, path)
    elif path.suffix == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == tensor.dtype and torch.equal(first[name], tensor)
        for name, tensor in second.items()
    )


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
def test_a_checkpoint_goes_in_and_comes_out_unchanged(tmp_path, suffix) -> None:
    state = official(reid=True)
    file = write(tmp_path / f"official.{suffix}", state)
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    facts = run_json("weights", "import", file, "-o", ours)
    assert (facts["missing"], facts["extra"], facts["reshaped"]) == ([], [], [])
    assert (facts["tracker"], facts["refiner"]) == (1, 1)
    assert facts["outside"] == (suffix == "pth")
    assert facts["bytes"] == ours.stat().st_size
    outline = facts["outline"]
    assert (outline["adapter"], outline["channels"], outline["num_heads"]) == ("vit", [DIM] * 4, 2)
    assert (outline["num_queries"], outline["num_categories"]) == (12, NUM_CATEGORIES)
    assert (outline["num_layers"], outline["num_encoder_layers"]) == (4, 2)
    assert outline["reid"]
    expected = dict(segmenter(reid=True).state_dict())
    expected["criterion.class_weight"] = state["criterion.empty_weight"]
    assert same(load_file(ours), expected)
    run_json("weights", "export", ours, "-o", back, "--others", file)
    assert same(load_file(back), state)
    assert sorted(os.listdir(tmp_path)) == sorted([file.name, ours.name, back.name])


def test_tensors_that_share_memory_are_written_each_on_its_own(tmp_path) -> None:
    state = official()
    state["backbone.norm2.bias"] = state["backbone.norm1.bias"]
    state["backbone.norm3.bias"] = state["backbone.norm1.bias"]
    torch.save(state, tmp_path / "tied.pth")
    run_json("weights", "import", tmp_path / "tied.pth", "-o", tmp_path / "ours.safetensors")
    ours = load_file(tmp_path / "ours.safetensors")
    assert torch.equal(ours["adapter.norms.1.bias"], ours["adapter.norms.0.bias"])


def test_the_file_says_what_it_was_made_from(tmp_path) -> None:
    file = write(tmp_path / "official.pth", official())
    run_json("weights", "import", file, "-o", tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as ours:
        about = json.loads(ours.metadata()["fcache"])
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert about["source"] == {"name": "official.pth", "sha256": sha256}
    assert about["outline"]["channels"] == [DIM] * 4
    assert str(tmp_path) not in json.dumps(about)


def test_a_run_starts_from_an_imported_file_and_its_model_is_exported(tmp_path) -> None:
    torch.manual_seed(1)
    source = segmenter()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    file = write(tmp_path / "official.pth", official(source))
    run_json("weights", "import", file, "-o", tmp_path / "ours.safetensors")
    model = segmenter()
    assert initialise(model, tmp_path / "ours.safetensors").fresh == ()
    assert same(model.state_dict(), source.state_dict())
    checkpoint = tmp_path / "step-0000001"
    checkpoint.mkdir()
    save_file(model.state_dict(), checkpoint / "model.safetensors")
    run_json("weights", "export", checkpoint, "-o", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert same(back, export_official(source.state_dict()))


def test_the_backbone_is_written_for_extract(tmp_path) -> None:
    file = write(tmp_path / "official.pth", official())
    vit = tmp_path / "vit.safetensors"
    out = ["-o", tmp_path / "ours.safetensors", "--backbone", vit]
    facts = run_json("weights", "import", file, *out)
    assert facts["backbone_output"] == str(vit)
    assert same(load_file(vit), in_meta_names(vit_state()))
    save_file(vit_state(), tmp_path / "timm.safetensors")
    sha256, _ = weights_hash(settings(weights=vit))
    assert sha256 == weights_hash(settings(weights=tmp_path / "timm.safetensors"))[0]


def test_a_pyramid_backbone_stays_where_it_is(tmp_path) -> None:
    adapter = PyramidAdapter((8, 16, 24, 40))
    state = official(segmenter(adapter), vit=False) | {"backbone.norm1.weight": torch.ones(16)}
    file, out = write(tmp_path / "swin.pkl", state), tmp_path / "ours.safetensors"
    code, _, err = run(
        "weights", "import", file, "-o", out, "--backbone", tmp_path / "b.safetensors"
    )
    assert code == 2
    assert "holds no 'backbone.vit_module.' tensors (first: 'backbone.norm1.weight')" in message(
        err
    )
    assert os.listdir(tmp_path) == ["swin.pkl"]
    facts = run_json("weights", "import", file, "-o", out)
    assert (facts["outline"]["adapter"], facts["backbone"]) == ("none", 1)
    assert facts["outline"]["channels"] == [8, 16, 24, 40]


def test_the_text_says_what_came_in(tmp_path) -> None:
    file = write(tmp_path / "official.safetensors", official())
    code, out, _ = run("weights", "import", file, "-o", tmp_path / "ours.safetensors")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith(f"wrote {tmp_path / 'ours.safetensors'} (")
    assert "adapter     vit: 32 channels, 2 heads" in lines
    assert "categories  5" in lines
    assert "tracker     1 of its tensors, left where they are" in lines
    assert lines[-3:] == ["missing: 0", "extra: 0", "reshaped: 0"]


def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path) -> None:
    state = official()
    del state["backbone.level_embed"]
    state["sem_seg_head.predictor.class_embed.bias"] = torch.zeros(134)
    state["sem_seg_head.predictor.depth_embed.weight"] = torch.zeros(3)
    file, out = write(tmp_path / "other.pth", state), tmp_path / "ours.safetensors"
    facts = run_json("weights", "import", file, "-o", out, code=2)
    assert not facts["written"]
    assert facts["missing"] == ["backbone.level_embed"]
    assert facts["extra"] == ["sem_seg_head.predictor.depth_embed.weight"]
    bias = "sem_seg_head.predictor.class_embed.bias"
    assert facts["reshaped"] == [{"name": bias, "found": [134], "expected": [NUM_CATEGORIES + 1]}]
    code, text, err = run("weights", "import", file, "-o", out, "--drop-extra")
    assert code == 2
    assert f"  {bias}: [134] instead of [6]" in text.splitlines()
    assert "is of another architecture: 1 missing (first: 'backbone.level_embed')" in err
    assert not out.exists()


def test_extra_tensors_are_left_out_only_when_told(tmp_path) -> None:
    file = write(tmp_path / "a.pth", official() | {"pixel_mean": torch.zeros(3, 1, 1)})
    out = tmp_path / "ours.safetensors"
    code, _, err = run("weights", "import", file, "-o", out)
    assert code == 2
    assert "(first: 'pixel_mean'); --drop-extra leaves them out." in message(err)
    assert run_json("weights", "import", file, "-o", out, "--drop-extra")["extra"] == ["pixel_mean"]
    assert "pixel_mean" not in load_file(out)


def test_a_plan_writes_nothing(tmp_path) -> None:
    file, out = write(tmp_path / "a.pth", official()), tmp_path / "ours.safetensors"
    assert not run_json("weights", "import", file, "-o", out, "--plan")["written"]
    assert os.listdir(tmp_path) == ["a.pth"]


class Runs:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_bad_files_are_refused_and_leave_nothing(tmp_path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    whole = write(tmp_path / "whole.pth", official()).read_bytes()
    (bad / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (bad / "text.pkl").write_text("no checkpoint")
    (bad / "movie.mp4").write_bytes(b"")
    for suffix in ("pth", "pkl"):
        code = {"model": {CLASS: Runs(tmp_path / "it-ran")}}
        (bad / f"code.{suffix}").write_bytes(pickle.dumps(code))
    save_file(vit_state(), bad / "backbone.safetensors")
    save_file(segmenter().state_dict(), bad / "ours.safetensors")
    save_file({CLASS: torch.zeros(6, 32)}, bad / "one.safetensors")
    odd = official() | {
        "sem_seg_head.pixel_decoder.mask_features.weight": torch.zeros(33, 33, 1, 1)
    }
    write(bad / "odd.pth", odd)
    expected = {
        "absent.pth": "does not exist; expected a checkpoint file",
        "truncated.pth": "cannot be read",
        "text.pkl": "cannot be read: truncated or no pickle",
        "movie.mp4": "has the suffix '.mp4'; expected .pth",
        "code.pth": "holds Python objects besides tensors",
        "code.pkl": "holds Python objects besides tensors (posix.mkdir)",
        "backbone.safetensors": "holds no segmenter: none of its",
        "ours.safetensors": "has fcache's own names already",
        "one.safetensors": "'sem_seg_head.pixel_decoder.input_proj.2.0.weight' is not there",
        "odd.pth": "the shapes are of no segmenter",
    }
    there = sorted(os.listdir(bad))
    for name, reason in expected.items():
        code, out, err = run("weights", "import", bad / name, "-o", bad / "out.safetensors")
        assert (code, out) == (2, "")
        assert reason in message(err)
    assert not (tmp_path / "it-ran").exists()
    assert sorted(os.listdir(bad)) == there


def test_what_cannot_be_exported_is_refused(tmp_path) -> None:
    out = tmp_path / "out.safetensors"
    write(tmp_path / "official.safetensors", official())
    comer = segmenter(ComerAdapter(DIM, 2, prior_width=8))
    save_file(comer.state_dict(), tmp_path / "comer.safetensors")
    save_file(vit_state(), tmp_path / "backbone.safetensors")
    expected = {
        "official.safetensors": "has official names already",
        "comer.safetensors": "tensors have no official name",
        "backbone.safetensors": "holds no segmenter of fcache's",
    }
    for name, reason in expected.items():
        code, _, err = run("weights", "export", tmp_path / name, "-o", out)
        assert code == 2
        assert reason in message(err)
    assert not out.exists()


def test_an_existing_file_is_replaced_only_by_force_and_the_source_never(tmp_path) -> None:
    file, out = write(tmp_path / "a.safetensors", official()), tmp_path / "ours.safetensors"
    out.write_text("precious")
    expected = {out: "exists; pass --force", file: "is the file that is read"}
    for path, reason in expected.items():
        before = path.read_bytes()
        code, _, err = run("weights", "import", file, "-o", path)
        assert code == 2
        assert reason in message(err)
        assert path.read_bytes() == before
    run_json("weights", "import", file, "-o", out, "--force")
    assert "masked_decoder.class_head.weight" in load_file(out)
    for words, reason in (
        (["-o", tmp_path / "x.npz"], "suffix '.npz'; expected .safetensors"),
        (["-o", tmp_path / "x.safetensors", "--backbone", tmp_path / "x.safetensors"], "two files"),
    ):
        code, _, err = run("weights", "import", file, *words)
        assert code == 2
        assert reason in message(err)


def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(tmp_path) -> None:
    file, out = write(tmp_path / "a.pth", official()), tmp_path / "ours.safetensors"
    out.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        code, _, err = run("weights", "import", file, "-o", out, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 6
    assert "no space left for the" in message(err)
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "ours.safetensors"]


def small_file_of(path, shapes):
    """A checkpoint of full shapes in a small file: every tensor is one number, expanded."""
    state = {
        name: torch.zeros((), dtype=torch.int64 if "num_batches" in name else None).expand(shape)
        for name, shape in shapes.items()
    }
    torch.save({"model": state}, path)
    return path


@needs_shared
@pytest.mark.parametrize("name", SEGMENTERS)
def test_official_models_are_recognised_by_their_shapes(tmp_path, name) -> None:
    dim, num_heads, num_categories, reid = SEGMENTERS[name]
    assert KEYS.is_dir()
    _, shapes = recorded(name)
    file = small_file_of(tmp_path / "official.pth", shapes)
    facts = run_json("weights", "import", file, "-o", tmp_path / "x.safetensors", "--plan")
    outline = facts["outline"]
    assert (outline["channels"], outline["num_heads"]) == ([dim] * 4, num_heads)
    assert (outline["num_queries"], outline["reid"]) == (200, reid)
    assert outline["num_categories"] == shapes["criterion.empty_weight"][0] - 1
    assert num_categories in {None, outline["num_categories"]}
    assert (outline["num_encoder_layers"], outline["num_layers"], outline["dim"]) == (6, 9, 256)
    parts = ("tensors", "backbone", "tracker", "refiner")
    assert sum(facts[part] for part in parts) == len(shapes)


@needs_shared
def test_a_full_segmenter_goes_in_and_comes_out_with_its_names_and_shapes(tmp_path) -> None:
    _, shapes = recorded("segmenter_ctvis_vitadapterL")
    file = small_file_of(tmp_path / "official.pth", shapes)
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    facts = run_json("weights", "import", file, "-o", ours)
    run_json("weights", "export", ours, "-o", back)
    with safe_open(back, framework="pt") as exported:
        found = {name: tuple(exported.get_slice(name).get_shape()) for name in exported.keys()}  # noqa: SIM118
    assert len(found) == facts["tensors"]
    assert found == {k: s for k, s in shapes.items() if not k.startswith("backbone.vit_module.")}


def test_shapes_of_a_full_size_pyramid_segmenter_give_its_outline_back() -> None:
    adapter = PyramidAdapter((96, 192, 384, 768))
    with torch.device("meta"):
        pixel_decoder = PixelDecoder(adapter.channels)
        model = Segmenter(adapter, pixel_decoder, MaskedDecoder(133, num_queries=100))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    outline = outline_of(shapes)
    assert outline.shapes() == shapes
    assert (outline.channels, outline.num_queries) == ((96, 192, 384, 768), 100)
    assert not outline.class_weight
