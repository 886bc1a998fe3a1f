from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fcache.models.adapter import ViTAdapter
from fcache.models.deformable import DeformableAttention
from fcache.models.extractor import scale_grids, split_scales
from fcache.models.official_names import ADAPTER
from fcache.models.positions import pixel_centres
from tests.models.tiny import DIM, pixels, stage_outputs
from tests.models.vectors import below, close, load, load_weights
from tests.shared import needs_shared


def official():
    vectors = load("vit_adapter_full")
    adapter = ViTAdapter(48, 6, prior_width=8)
    load_weights(adapter, below(vectors, "sd/"), ADAPTER, skip="vit_module.")
    stages = [vectors[f"in/stage_outputs/{i}"].unflatten(1, (4, 6)) for i in range(4)]
    return vectors, adapter, stages


@needs_shared
def test_each_stage_equals_the_official_one_given_the_tokens_before_it() -> None:
    vectors, adapter, stages = official()
    grid, centres = (4, 6), pixel_centres(scale_grids((4, 6)))
    adapter.eval()
    with torch.no_grad():
        finest, *coarser = adapter.spatial_prior(vectors["in/image"])
        embeds = zip(coarser, adapter.level_embed, strict=True)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) + embed for m, embed in embeds], 1)
        for index, stage in enumerate(stages):
            found = adapter.interact(index, tokens, stage.flatten(1, 2), centres, grid)
            tokens = vectors[f"mid/c_after_interaction/{index}"]
            close(found, tokens)
        pyramid = adapter.fuse(finest, split_scales(tokens, grid), stages)
    for index, level in enumerate(pyramid):
        close(level, vectors[f"out/{index}"])


@needs_shared
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_pyramid_equals_the_official_one_as_far_as_float32_reaches(mode) -> None:
    """Six extractors in a row amplify rounding: the recorded maps themselves miss the stated
    1e-5 + 1e-4 |x| against the same computation in float64 (by up to 3.3e-5). So the chain gets
    5e-5, and must be as near to float64 as the recorded maps are."""
    vectors, adapter, stages = official()
    expected = [vectors[f"{'out' if mode == 'eval' else 'out_train'}/{i}"] for i in range(4)]
    adapter.train(mode == "train")
    with torch.no_grad():
        pyramid = adapter(stages, vectors["in/image"])
        _, adapter, _ = official()
        adapter.double().train(mode == "train")
        exact = adapter([stage.double() for stage in stages], vectors["in/image"].double())
    for level, official_level, truth in zip(pyramid, expected, exact, strict=True):
        torch.testing.assert_close(level, official_level, atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(official_level.double(), truth, atol=5e-5, rtol=1e-4)
        ours, theirs = ((x - truth).square().mean().sqrt() for x in (level, official_level))
        assert ours < 1.5 * theirs


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_checkpointing_changes_no_value_and_no_gradient(dtype) -> None:
    stages = [stage.to(dtype) for stage in stage_outputs()]
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        adapter = ViTAdapter(DIM, 2, prior_width=8, checkpointing=checkpointing)
        sum(level.square().mean() for level in adapter(stages, pixels())).backward()
        grads.append({name: p.grad for name, p in adapter.named_parameters()})
    assert all(grad is not None for grad in grads[0].values())
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept = []
    for checkpointing in (False, True):
        sizes: dict[int, int] = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        adapter = ViTAdapter(DIM, 2, prior_width=8, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            adapter(stage_outputs(), pixels())
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.7 * kept[0]


def test_initial_values_follow_the_adapter_and_the_attention_its_own_rule() -> None:
    torch.manual_seed(0)
    adapter = ViTAdapter(64, 4, prior_width=16)
    conv = adapter.spatial_prior.down8.conv.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    linear = adapter.extractors[0].ffn.linear1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not linear.bias.any()
    attention = adapter.extra_extractors[1].attention
    assert not attention.offsets.weight.any()
    assert not attention.logits.weight.any()
    bias = attention.offsets.bias.view(4, 1, 4, 2)
    assert torch.allclose(bias[0, 0, :, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(bias[1, 0, 2], torch.tensor([0.0, 3.0]), atol=1e-6)


def test_diagonal_heads_reach_as_far_as_straight_ones() -> None:
    bias = DeformableAttention(64, 8, 1).offsets.bias.view(8, 4, 2)
    assert torch.allclose(bias.abs().amax(-1), torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(8, 4))


def test_each_stage_is_added_to_its_own_level() -> None:
    adapter = ViTAdapter(DIM, 2, prior_width=8).eval()
    maps = split_scales(torch.zeros(2, 126, DIM), (4, 6))
    nothing = [torch.zeros(2, 4, 6, DIM) for _ in range(4)]
    with torch.no_grad():
        before = adapter.fuse(torch.zeros(2, DIM, 16, 24), maps, nothing)
        for index, level_shape in enumerate([(16, 24), (8, 12), (4, 6), (2, 3)]):
            stages = [*nothing[:index], stage_outputs()[index], *nothing[index + 1 :]]
            after = adapter.fuse(torch.zeros(2, DIM, 16, 24), maps, stages)
            changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
            assert changed == [level == index for level in range(4)]
            assert after[index].shape[2:] == level_shape


def test_the_coarsest_level_gets_two_by_two_means() -> None:
    adapter = ViTAdapter(DIM, 2, prior_width=8).eval()
    maps = split_scales(torch.zeros(2, 126, DIM), (4, 6))
    stages = stage_outputs()
    with torch.no_grad():
        coarsest = adapter.fuse(torch.zeros(2, DIM, 16, 24), maps, stages)[3]
        means = F.avg_pool2d(stages[3].permute(0, 3, 1, 2), 2)
    torch.testing.assert_close(coarsest, means / (1 + 1e-5) ** 0.5)


def test_wrong_inputs_are_told_with_both_shapes() -> None:
    adapter = ViTAdapter(DIM, 2, prior_width=8)
    stages = stage_outputs()
    with pytest.raises(ValueError, match="expected four of one"):
        adapter(stages[:3], pixels())
    with pytest.raises(ValueError, match="have 32 channels; this adapter has 64"):
        ViTAdapter(64, 2, prior_width=8)(stages, pixels())
    with pytest.raises(ValueError, match=r"pixels are \(2, 3, 32, 96\).*\(2, 3, 64, 96\)"):
        adapter(stages, pixels()[:, :, :32])
    with pytest.raises(ValueError, match="pixels are None"):
        adapter(stages, None)
