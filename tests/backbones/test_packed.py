from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fcache.backbones import load, versions
from fcache.backbones.packed import block_diagonal, choose_attention, per_frame
from fcache.errors import ConfigError
from tests.backbones.tiny import CPU, backbone, canvas, settings

SIZES = [(64, 96), (32, 64), (96, 32), (64, 96)]
VALID = [(60, 90), (32, 64), (81, 20), (64, 96)]
MODELS = [
    "vit_parity_swiglu",  # layer scale, class token, packed SwiGLU
    "vit_small_swiglu_reg2",  # registers, no class position
    "vit_no_class_token",  # a norm before the blocks, no layer scale
    "vit_every_norm",  # norms on query and key, after attention and inside the MLP
    "vit_gated",
]


class Mask:
    """What the documentation says of ``BlockDiagonalMask``: block i attends to block i only."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.lengths, self.device = lengths, device

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None) -> Mask:
        assert kv_seqlen is None
        return cls(list(q_seqlen), device)

    def materialize(self, shape: tuple[int, int]) -> torch.Tensor:
        mask = torch.full(shape, -math.inf)
        start = 0
        for length in self.lengths:
            mask[start : start + length, start : start + length] = 0
            start += length
        assert shape == (start, start)
        return mask


def documented_attention(query, key, value, attn_bias):
    """The equivalent code in the documentation of ``memory_efficient_attention``, in float32."""
    assert query.shape == key.shape == value.shape
    assert query.ndim == 4
    assert query.dtype == key.dtype == value.dtype
    assert all(t.stride(-1) == 1 for t in (query, key, value))
    assert query.shape[0] == 1, "a block-diagonal mask takes one sequence"
    mask = attn_bias.materialize((query.shape[1], query.shape[1]))
    q, k, v = (t.transpose(1, 2).float() for t in (query, key, value))
    weights = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1) + mask
    return (weights.softmax(-1) @ v).transpose(1, 2).contiguous().to(value.dtype)


OPS = SimpleNamespace(
    fmha=SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=Mask)),
    memory_efficient_attention=documented_attention,
)


def frames(sizes=SIZES, scale: int = 1, device: torch.device = CPU):
    return [
        canvas(1, h * scale, w * scale, seed=index)[0].to(device)
        for index, (h, w) in enumerate(sizes)
    ]


def mixed_and_alone(loaded, scale: int = 1):
    """Pairs of a stage output computed among other frames, and computed alone."""
    patch = loaded.description.patch
    sizes = [(h * patch // 16, w * patch // 16) for h, w in SIZES]
    valid = [(h * patch // 16 * scale, w * patch // 16 * scale) for h, w in VALID]
    drawn = frames(sizes, scale, loaded.mean.device)
    mixed = loaded.forward_mixed(drawn, valid)
    assert len(mixed) == len(drawn)
    for frame, area, stages in zip(drawn, valid, mixed, strict=True):
        assert len(stages) == 4
        for one, together in zip(loaded(frame[None], area), stages, strict=True):
            assert together.shape == one.shape[1:]
            assert together.dtype == torch.float32
            yield together, one[0]


def assert_mixed_equals_alone(loaded) -> None:
    for mixed, alone in mixed_and_alone(loaded):
        torch.testing.assert_close(mixed, alone, atol=1e-5, rtol=1e-5)


def assert_as_exact_as_alone(loaded, full, scale: int = 1) -> None:
    """Mixed frames are as near to float32 as frames computed alone in the same arithmetic."""
    pairs = mixed_and_alone(loaded, scale)
    for (mixed, alone), (_, exact) in zip(pairs, mixed_and_alone(full, scale), strict=True):
        assert 0 < (alone - exact).norm() < 0.05 * exact.norm()
        assert (mixed - exact).norm() < 1.5 * (alone - exact).norm()


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("model", MODELS)
def test_mixed_frames_equal_each_frame_alone(model, patch) -> None:
    assert_mixed_equals_alone(backbone(model, patch=patch))


@pytest.mark.parametrize("model", MODELS)
def test_one_block_diagonal_call_equals_each_frame_alone(model, monkeypatch) -> None:
    loaded = backbone(model)
    chosen = choose_attention(CPU, torch.float32, 8, ops=OPS)
    assert chosen.name == "xformers block-diagonal"
    monkeypatch.setattr(loaded, "_mixed", chosen)
    assert_mixed_equals_alone(loaded)


def test_mixed_frames_in_bfloat16_are_as_exact_as_alone(monkeypatch) -> None:
    loaded = backbone("vit_every_norm", compute_dtype="bfloat16")
    full = backbone("vit_every_norm")
    assert_as_exact_as_alone(loaded, full)
    monkeypatch.setattr(loaded, "_mixed", choose_attention(CPU, torch.bfloat16, 16, ops=OPS))
    assert_as_exact_as_alone(loaded, full)


def test_frames_do_not_see_each_other() -> None:
    loaded = backbone("vit_every_norm")
    drawn = frames()
    before = loaded.forward_mixed(drawn, VALID)
    drawn[1] = 255 - drawn[1]
    after = loaded.forward_mixed(drawn, VALID)
    for index in (0, 2, 3):
        for one, other in zip(before[index], after[index], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert (before[1][0] - after[1][0]).abs().max() > 1e-3


def test_both_attentions_agree_on_segments_of_one_token() -> None:
    lengths = [1, 7, 2, 1]
    tensors = [torch.randn(1, 11, 3, 8, generator=torch.manual_seed(seed)) for seed in range(3)]
    separate = per_frame(lengths, CPU)(*tensors)
    assert separate.shape == (1, 11, 3, 8)
    together = block_diagonal(lengths, CPU, ops=OPS)(*tensors)
    torch.testing.assert_close(separate, together, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(separate[:, :1], tensors[2][:, :1], atol=1e-6, rtol=1e-6)


def test_query_and_key_take_the_type_of_the_value() -> None:
    # On CUDA autocast leaves float32 behind the norms on query and key; one call takes one type.
    query, key, value = (torch.randn(1, 6, 2, 8) for _ in range(3))
    found = block_diagonal([2, 4], CPU, ops=OPS)(query, key, value.bfloat16())
    same = [tensor.bfloat16() for tensor in (query, key, value)]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, block_diagonal([2, 4], CPU, ops=OPS)(*same))


def test_stand_in_masks_as_the_installed_xformers() -> None:
    bias = pytest.importorskip("xformers.ops.fmha.attn_bias", reason="xformers is not installed")
    real = bias.BlockDiagonalMask.from_seqlens([3, 1, 4], device=CPU)
    ours = Mask.from_seqlens([3, 1, 4], device=CPU)
    assert torch.equal(real.materialize((8, 8)), ours.materialize((8, 8)))


def test_kernel_that_xformers_lacks_is_named_and_not_used() -> None:
    def refuses(query, key, value, attn_bias):
        raise NotImplementedError("No operator found")

    ops = SimpleNamespace(fmha=OPS.fmha, memory_efficient_attention=refuses)
    chosen = choose_attention(CPU, torch.float32, 13, ops=ops)
    assert chosen.prepare is per_frame
    assert chosen.name == (
        "sdpa per frame (xformers has no kernel for float32 and heads of 13 here)"
    )


def test_provenance_names_the_attention_that_runs() -> None:
    loaded = backbone()
    assert versions(CPU)["attention"] == "sdpa"
    assert loaded.mixed_attention == "sdpa per frame"
    assert versions(CPU, attention=loaded.mixed_attention)["attention"] == "sdpa per frame"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("vit_differential", "block 0 holds a DiffAttention"),
        ("vit_base_patch16_rpn_224", "block 0 is a ResPostBlock"),
        ("resnet18", "it is a pyramid"),
    ],
)
def test_networks_that_are_not_covered_are_refused_with_a_reason(model, reason) -> None:
    loaded = backbone(model)
    assert loaded.mixed_refusal.startswith(reason)
    with pytest.raises(ConfigError, match=f"model='{model}' computes frames of one size.*{reason}"):
        loaded.forward_mixed(frames(), VALID)


def test_users_module_of_a_known_name_is_refused() -> None:
    class Identity(nn.Module):
        def forward(self, tokens):
            return tokens.mean(1, keepdim=True)

    loaded = backbone()
    loaded.trunk.vit.blocks[2].drop_path1 = Identity()
    assert loaded.mixed_refusal == "block 2 holds a Identity"


def test_wrong_canvases_among_mixed_frames_are_refused() -> None:
    loaded = backbone()
    assert loaded.forward_mixed([], []) == []
    with pytest.raises(ValueError, match="multiples of 16"):
        loaded.forward_mixed([*frames(), canvas(1, 64, 70)[0]], [*VALID, (64, 70)])
    with pytest.raises(ValueError, match="uint8"):
        loaded.forward_mixed([frame.float() for frame in frames()], VALID)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        loaded.forward_mixed(frames(), VALID[:2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("model", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_mixed_frames_on_cuda_equal_each_frame_alone(model, compute) -> None:
    pytest.importorskip("xformers.ops", reason="xformers is not installed")
    device = torch.device("cuda")
    loaded = load(settings(model, compute_dtype=compute), device=device)
    assert loaded.mixed_attention.endswith("block-diagonal")
    if compute == "float32":
        for mixed, alone in mixed_and_alone(loaded, scale=4):
            torch.testing.assert_close(mixed, alone, atol=1e-3, rtol=1e-3)
    else:
        assert_as_exact_as_alone(loaded, load(settings(model), device=device), scale=4)
