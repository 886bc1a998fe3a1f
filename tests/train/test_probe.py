"""The linear probe: what it computes, what it learns, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcache.config import ProbeConfig, load_recipe, resolve
from fcache.errors import ConfigError, FeatureError
from fcache.train.probe import ProbeHead, evaluate, train_probe
from fcache.train.probe_data import read_frames

CHANNELS = (6, 8, 10, 12)
CONFIG = ProbeConfig(steps=60, batch=2, lr=0.05, weight_decay=1e-4, stride=8, seed=0)


class Blocks:
    """Frames whose stage 2 (stride 8) shows the category of each 16-pixel block, in noise."""

    def __init__(self, count, seed, sizes=((64, 96),), num_categories=3, dtype=np.float16):
        rng = np.random.default_rng(seed)
        mixing = np.random.default_rng(7).normal(size=(num_categories, CHANNELS[1]))
        self.items = []
        for index in range(count):
            height, width = sizes[index % len(sizes)]
            blocks = rng.integers(0, num_categories, (height // 16, width // 16))
            label = np.kron(blocks, np.ones((16, 16))).astype(np.uint8)
            stages = [
                rng.normal(size=(height // s, width // s, c))
                for s, c in zip((4, 8, 16, 32), CHANNELS, strict=True)
            ]
            stages[1] = 40 + 5 * (stages[1] + 3 * mixing[label[4::8, 4::8]])
            label[:, -8:] = 255
            self.items.append(([stage.astype(dtype) for stage in stages], label))

    def __len__(self):
        return len(self.items)

    def stages(self, index):
        return list(self.items[index][0])

    def label(self, index):
        return self.items[index][1]


def test_the_recipe_makes_a_config():
    config = resolve(ProbeConfig, load_recipe("probe"), {})
    assert config.steps * config.batch >= 367


def test_logits_equal_a_linear_layer_on_the_concatenated_upsampled_stages():
    torch.manual_seed(0)
    head = ProbeHead((3, 5), 4, stride=4)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    for index, c in enumerate((3, 5)):
        head.get_buffer(f"mean{index}").copy_(torch.randn(c))
        head.get_buffer(f"std{index}").copy_(torch.rand(c) + 0.5)
    stages = [torch.randn(2, 4, 6, 3), torch.randn(2, 2, 3, 5)]
    parts = [
        F.interpolate(
            ((s - head.get_buffer(f"mean{i}")) / head.get_buffer(f"std{i}")).permute(0, 3, 1, 2),
            size=(8, 12),
            mode="bilinear",
        )
        for i, s in enumerate(stages)
    ]
    kernel = torch.cat(list(head.weights), dim=1)[:, :, None, None]
    wanted = F.conv2d(torch.cat(parts, dim=1), kernel, head.bias)
    assert torch.allclose(head(stages, (8, 12)), wanted, atol=1e-5)


def test_averaging_features_before_the_map_equals_averaging_logits_after_it():
    frames = Blocks(1, 0, dtype=np.float64)
    head = ProbeHead(CHANNELS, 3, stride=16)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    config = CONFIG.model_copy(update={"stride": 16})
    kept, _ = read_frames(frames, config, 3, np.random.default_rng(0), lambda _: None)
    assert kept[0].stages[0].shape == (4, 6, CHANNELS[0])
    full = [torch.from_numpy(stage).float()[None] for stage in frames.stages(0)]
    averaged = [stage.float()[None] for stage in kept[0].stages]
    assert torch.allclose(head(full, (4, 6)), head(averaged, (4, 6)), atol=0.2, rtol=1e-3)


def test_standardisation_is_that_of_labelled_tokens():
    frames = Blocks(3, 0)
    for stages, _ in frames.items:
        stages[3][:, -1] = 1000.0  # half of these tokens is labelled: they count
        stages[1][:, -1] = 1000.0  # none of these is
    _, moments = read_frames(frames, CONFIG, 3, np.random.default_rng(0), lambda _: None)
    tokens = np.concatenate([s[1][:, :-1].reshape(-1, CHANNELS[1]) for s, _ in frames.items])
    mean, std = moments[1].mean_std()
    assert np.allclose(mean, tokens.astype(np.float64).mean(0), atol=1e-3)
    assert np.allclose(std, tokens.astype(np.float64).std(0), atol=1e-3)
    assert float(moments[3].mean_std()[0][0]) > 100


def test_a_category_that_the_features_show_is_learned_and_scored_on_unseen_frames():
    head = train_probe(Blocks(12, 0), config=CONFIG, num_categories=3)
    matrix = evaluate(head, Blocks(4, 99))
    untrained = evaluate(ProbeHead(CHANNELS, 3, 8), Blocks(4, 99))
    assert matrix.miou > 0.75
    assert untrained.miou < 0.2


def test_frames_of_several_sizes_train_together():
    sizes = ((64, 96), (96, 64), (64, 64))
    head = train_probe(Blocks(9, 0, sizes), config=CONFIG, num_categories=3)
    assert evaluate(head, Blocks(3, 99, sizes)).miou > 0.7


def test_same_seed_gives_the_same_head_and_another_seed_does_not():
    frames = Blocks(6, 0)
    short = CONFIG.model_copy(update={"steps": 5})
    first, second = (train_probe(frames, config=short, num_categories=3) for _ in range(2))
    other = train_probe(frames, config=short.model_copy(update={"seed": 1}), num_categories=3)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(first.weights[1], other.weights[1])


def test_progress_counts_frames_then_steps_and_the_loss_falls():
    events = []
    train_probe(Blocks(4, 0), config=CONFIG, num_categories=3, progress=events.append)
    assert [(e.done, e.total) for e in events if e.part == "read"] == [(i, 4) for i in range(1, 5)]
    losses = [e.loss for e in events if e.part == "fit"]
    assert len(losses) == CONFIG.steps
    assert losses[0] == pytest.approx(np.log(3), abs=1e-4)
    assert losses[-1] < 0.5 * losses[0]


def test_memory_limit_samples_the_set():
    frames = Blocks(20, 0)
    rng = np.random.default_rng
    kept, _ = read_frames(frames, CONFIG, 3, rng(0), lambda _: None)
    one = kept[0].num_bytes
    limited = CONFIG.model_copy(update={"memory_bytes": int(5.5 * one)})
    assert len(kept) == 20
    assert len(read_frames(frames, limited, 3, rng(0), lambda _: None)[0]) == 5
    few_steps = CONFIG.model_copy(update={"steps": 3, "batch": 2})
    assert len(read_frames(frames, few_steps, 3, rng(0), lambda _: None)[0]) == 6


def test_features_beyond_float16_are_kept_as_they_are():
    frames = Blocks(2, 0, dtype=np.float32)
    frames.items[0][0][2][0, 0, 0] = 1e6
    kept, _ = read_frames(frames, CONFIG, 3, np.random.default_rng(0), lambda _: None)
    kinds = [{stage.dtype for stage in frame.stages} for frame in kept]
    assert {torch.float16, torch.float32} in kinds
    assert {torch.float16} in kinds
    assert max(float(frame.stages[2].max()) for frame in kept) == 1e6


def test_cell_counts_are_the_labels_pixels_where_the_stride_does_not_divide():
    frames = Blocks(1, 0)
    config = CONFIG.model_copy(update={"stride": 14})
    kept, _ = read_frames(frames, config, 3, np.random.default_rng(0), lambda _: None)
    assert kept[0].pixels.shape == (5, 7, 3)
    label = frames.label(0)
    wanted = np.bincount(label[label != 255], minlength=3)
    assert np.array_equal(kept[0].pixels.sum((0, 1)).numpy(), wanted)


def test_labels_and_features_that_cannot_be_used_are_named():
    wrong = Blocks(2, 0)
    wrong.items[1][1][5, 5] = 9
    with pytest.raises(ConfigError, match=r"frame 1 holds label 9; expected 0\.\.2"):
        train_probe(wrong, config=CONFIG, num_categories=3)
    broken = Blocks(2, 0)
    broken.items[0][0][0][3, 3, 1] = np.nan
    with pytest.raises(FeatureError, match=r"frame 0 .* not finite"):
        train_probe(broken, config=CONFIG, num_categories=3)
    void = Blocks(2, 0)
    for _, label in void.items:
        label[:] = 255
    with pytest.raises(ConfigError, match="none of 2 training frames"):
        train_probe(void, config=CONFIG, num_categories=3)
