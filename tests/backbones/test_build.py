from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from fcache.backbones import describe, load, versions
from fcache.errors import ConfigError, WeightsError
from tests.backbones.tiny import CPU, backbone, canvas, settings


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, so that memory and environment are this test's own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
        timeout=240,
    )


def test_every_named_model_is_described_in_little_memory() -> None:
    done = run(
        """
        import resource
        from fcache.backbones import describe
        from fcache.config import BackboneSettings
        describe(BackboneSettings(model="resnet18"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for model in (
            "vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2",
            "vit_giant_patch14_dinov2", "vit_giant_patch14_reg4_dinov2", "vit_tiny_patch16_224",
            "sam2_hiera_tiny", "swin_large_patch4_window12_384", "resnet50", "mobilevitv2_100",
        ):
            assert len(describe(BackboneSettings(model=model)).stages) == 4
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        """
    )
    assert done.returncode == 0, done.stderr
    # The weights of these models are 8 GB in float32.
    assert float(done.stdout) < 200


def test_loading_in_bfloat16_peaks_far_below_the_float32_weights() -> None:
    done = run(
        """
        import resource, torch
        from fcache.backbones import load
        from fcache.config import BackboneSettings
        cpu = torch.device("cpu")
        load(BackboneSettings(model="vit_tiny_patch16_224", weights="random:0"), device=cpu)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        settings = BackboneSettings(
            model="vit_large_patch14_dinov2", weights="random:0", compute_dtype="bfloat16"
        )
        kept = load(settings, device=cpu)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        """
    )
    assert done.returncode == 0, done.stderr
    # 304 M parameters: 580 MiB in bfloat16, 1161 MiB in float32.
    assert float(done.stdout) < 800


def test_backbone_is_frozen_and_stays_in_evaluation_mode() -> None:
    loaded = backbone("resnet18")
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    loaded.train()
    assert not any(module.training for module in loaded.modules())
    outputs = loaded(canvas(1, 64, 64), (64, 64))
    assert not outputs[0].requires_grad
    # Outputs of inference mode could not feed a network that trains.
    assert not outputs[0].is_inference()


def test_no_parameter_is_left_without_values() -> None:
    for model in ("vit_parity_swiglu", "swin_tiny_patch4_window7_224"):
        loaded = backbone(model)
        tensors = [*loaded.parameters(), *loaded.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_description_is_the_same_with_and_without_weights() -> None:
    chosen = settings("vit_tiny_patch16_224")
    assert describe(chosen) == load(chosen, device=CPU).description
    assert pickle.loads(pickle.dumps(describe(chosen))) == describe(chosen)


def test_pretrained_tag_is_no_part_of_the_model_name() -> None:
    tagged = describe(settings("vit_tiny_patch16_224.augreg_in21k"))
    assert tagged == describe(settings("vit_tiny_patch16_224"))


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'vit_gaint_patch14_dinov2'.*vit_giant_patch14_dinov2"):
        describe(settings("vit_gaint_patch14_dinov2"))
    with pytest.raises(ConfigError, match=r"Known: vit_small_patch14_dinov2\.lvd142m"):
        describe(settings("vit_small_patch14_dinov2.laion"))


def test_hub_without_a_connection_says_what_to_pass_instead() -> None:
    done = run(
        """
        import torch
        from fcache.backbones import load
        from fcache.config import BackboneSettings
        from fcache.errors import WeightsError
        for model in ("vit_tiny_patch16_224", "resnet18"):
            try:
                load(BackboneSettings(model=model), device=torch.device("cpu"))
            except WeightsError as error:
                print(error.message)
        """,
        HF_HUB_OFFLINE="1",
        HF_HOME="/nonexistent",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line, model in zip(lines, ("vit_tiny_patch16_224", "resnet18"), strict=True):
        assert line.startswith(f"weights='hub' of '{model}' cannot be had (")
        assert "pass weights=FILE" in line
        assert "weights=random:SEED" in line


def test_hub_reads_what_timm_loads(monkeypatch, tmp_path) -> None:
    # timm loads a local file through the same call as the hub's when its entry names one.
    from timm.models import _registry

    trunk = backbone("vit_tiny_patch16_224", "random:4").trunk.vit
    state = {**trunk.state_dict(), "norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    state |= {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "hub.pth")
    entry = _registry._model_pretrained_cfgs["vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    monkeypatch.setattr(entry, "file", str(tmp_path / "hub.pth"))
    monkeypatch.setattr(entry, "custom_load", False)
    loaded = backbone("vit_tiny_patch16_224", "hub")
    assert loaded.weights_sha256 == backbone("vit_tiny_patch16_224", "random:4").weights_sha256
    assert loaded.weights_source == "hub vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_model_without_hub_weights_is_not_given_random_ones() -> None:
    for model in ("vit_parity_swiglu", "vit_giant_patch14_224"):
        with pytest.raises(WeightsError, match="knows no pretrained weights"):
            backbone(model, "hub")


def test_device_without_the_arithmetic_is_refused() -> None:
    with pytest.raises(ConfigError, match="compute_dtype=bfloat16 does not run on 'meta'"):
        load(settings(compute_dtype="bfloat16"), device=torch.device("meta"))


def test_loaded_weights_outlive_their_file(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    state = {k.removeprefix("vit."): v for k, v in backbone().trunk.state_dict().items()}
    torch.save(state, path)
    loaded = backbone(weights=path)
    frames = canvas(1, 64, 64)
    before = loaded(frames, (64, 64))[3]
    size_bytes = path.stat().st_size
    path.write_bytes(b"\xff" * size_bytes)
    assert torch.equal(loaded(frames, (64, 64))[3], before)


def test_compile_needs_cuda() -> None:
    with pytest.raises(ConfigError, match="compile=true needs a CUDA device"):
        load(settings(), device=CPU, compile=True)


def test_versions_name_what_may_change_the_last_bits() -> None:
    found = versions(CPU)
    assert found["torch"] == str(torch.__version__)
    assert found["attention"] == "sdpa"
    assert found["device"].startswith("cpu ")
    assert versions().keys() == found.keys()
