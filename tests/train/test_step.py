"""One step in memory: what it needs, and what it does to the numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fcache.train.optimizer import MultiStep, make_optimizer
from fcache.train.step import NotFiniteError, TrainStep
from tests.train.memory import clip, joined_clips, sgd, stage

ONLY_THESE = """
import sys

BLOCKED = {"pydantic", "zarr", "pyarrow", "crc32c", "PIL", "av", "timm", "dask", "tensorboard"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from fcache.train.optimizer import MultiStep, make_optimizer
from fcache.train.step import TrainStep
from tests.train.memory import clip, stage

trained = stage()
step = TrainStep(trained, make_optimizer(trained.groups()), MultiStep((), 0.1), clip_norm=0.01)
result = step(0, [clip(0)])
assert result.losses["loss"] > 0, result
"""


def a_step(**options):
    trained = stage()
    return trained, TrainStep(trained, sgd(trained), MultiStep((), 0.1), **options)


def test_a_step_in_memory_needs_torch_numpy_scipy_and_safetensors_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONLY_THESE], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_whole_gradient_is_clipped_to_the_norm() -> None:
    trained, step = a_step(clip_norm=0.01)
    result = step(0, [clip(0)])
    assert result.grad_norm > 0.01
    gradients = [p.grad.flatten() for p in trained.module.parameters()]
    assert torch.cat(gradients).norm().item() == pytest.approx(0.01, rel=1e-3)
    trained, step = a_step(clip_norm=0.0)
    unclipped = step(0, [clip(0)])
    gradients = [p.grad.flatten() for p in trained.module.parameters()]
    assert torch.cat(gradients).norm().item() == pytest.approx(unclipped.grad_norm, rel=1e-4)


def test_losses_of_a_step_are_its_parts_and_a_weighted_sum() -> None:
    _, step = a_step()
    losses = step(0, [clip(0)]).losses
    assert list(losses) == ["loss", "loss_ce", "loss_mask", "loss_dice"]
    final = 2 * losses["loss_ce"] + 5 * losses["loss_mask"] + 5 * losses["loss_dice"]
    assert final < losses["loss"]  # the auxiliary layers come on top


def test_clip_without_segments_trains_on_no_object() -> None:
    _, step = a_step()
    result = step(0, [clip(0, num_segments=0)])
    assert result.losses["loss_mask"] == result.losses["loss_dice"] == 0
    assert result.losses["loss_ce"] > 0


def test_divisors_are_of_the_whole_step_not_of_a_micro_batch() -> None:
    trained, step = a_step()
    trained.module.eval()
    trained.module.train = lambda mode=True: trained.module  # one statistic for both divisions
    clips = [clip(0, 1), clip(1, 4)]
    parts = step(0, clips).losses
    again, step = a_step()
    again.module.eval()
    again.module.train = lambda mode=True: again.module
    assert step(0, [joined_clips(clips)]).losses == pytest.approx(parts, rel=1e-4)


def test_same_seed_and_step_give_the_same_bits_and_another_step_others() -> None:
    losses = []
    for number in (4, 4, 5):
        _, step = a_step()
        losses.append(step(number, [clip(0)]).losses["loss"])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_loss_that_is_not_finite_leaves_the_parameters_alone() -> None:
    trained, step = a_step()
    before = {name: tensor.clone() for name, tensor in trained.module.named_parameters()}
    bad = clip(7)
    bad.pixels[0, 0, 0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match=r"step 3: the loss is nan, from clip 7;") as caught:
        step(3, [bad])
    assert caught.value.exit_code == 1
    after = dict(trained.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_float16_scales_its_losses_and_skips_a_step_that_overflows() -> None:
    trained = stage()
    step = TrainStep(
        trained, make_optimizer(trained.groups()), MultiStep((), 0.1), clip_norm=0.01, amp="float16"
    )
    before = trained.module.masked_decoder.class_head.weight.detach().clone()
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**100})
    result = step(0, [clip(0)])
    assert not torch.isfinite(torch.tensor(result.grad_norm))
    assert torch.equal(trained.module.masked_decoder.class_head.weight, before)
    assert step.scaler.get_scale() == 2.0**99
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 256.0})
    result = step(1, [clip(0)])
    assert torch.isfinite(torch.tensor(result.grad_norm))
    assert not torch.equal(trained.module.masked_decoder.class_head.weight, before)
