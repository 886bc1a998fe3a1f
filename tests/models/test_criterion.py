from __future__ import annotations

import pytest
import torch

from fcache.models import HungarianMatcher, Match, Prediction, SeededDraw, SetCriterion, Targets
from tests.models.tiny import criterion, rectangles, two_targets
from tests.models.vectors import below, close, load, prediction
from tests.shared import needs_shared


class Replay:
    """The numbers that the official criterion drew, handed out by what they were for.

    It draws one set per image for matching, then candidates and fresh points for all masks of the
    batch at once, layer after layer; guided matching is not drawn for.
    """

    def __init__(self, recorded: list[torch.Tensor], counts: list[int], *, guided: bool = False):
        num_images = 0 if guided else len(counts)
        size = num_images + 2
        layers = [recorded[i : i + size] for i in range(0, len(recorded), size)]
        assert all(len(layer) == size for layer in layers)
        self.match = [layer[:num_images] for layer in layers]
        self.candidates = [layer[num_images].split(counts) for layer in layers]
        self.fresh = [layer[num_images + 1].split(counts) for layer in layers]

    def __call__(self, purpose, layer, image, shape):
        numbers = getattr(self, purpose)[layer][image]
        assert tuple(numbers.shape) == shape
        return numbers


def recorded(name, num_points=112):
    vectors = load(name)
    inputs = below(vectors, "in/")
    layers = [prediction(inputs, "outputs/")]
    layers += [prediction(inputs, f"outputs/aux_outputs/{index}/") for index in range(2)]
    for layer in layers:
        layer.class_logits.requires_grad_()
        layer.mask_logits.requires_grad_()
    targets = []
    while f"targets/{len(targets)}/labels" in inputs:
        masks = inputs[f"targets/{len(targets)}/masks"]
        masks = masks.squeeze(1) if masks.ndim == 4 else masks
        targets.append(Targets(inputs[f"targets/{len(targets)}/labels"], masks > 0))
    draws = [tensor for _, tensor in sorted(below(vectors, "rand/").items())]
    module = SetCriterion(10, HungarianMatcher(num_points), num_points=num_points)
    return vectors, layers, targets, draws, module


def check(vectors, layers, losses) -> None:
    """Losses, their weighted total and the recorded gradients equal the official ones."""
    official = below(vectors, "losses/")
    named = losses.named()
    assert named.keys() == official.keys()
    for name, value in official.items():
        close(named[name], value)
    close(losses.total(), vectors["weighted_total"])
    losses.total().backward()
    close(layers[0].class_logits.grad, vectors["grad/pred_logits"])
    for layer, key in ((layers[0], "pred_masks"), (layers[1], "aux0_pred_masks")):
        expected = vectors[f"grad/{key}"]
        close(layer.mask_logits.grad, expected.squeeze(2) if expected.ndim == 5 else expected)


@needs_shared
@pytest.mark.parametrize(
    ("name", "num_points"),
    [("criterion_image", 112), ("criterion_video_perframe", 112), ("criterion_video_refiner", 560)],
)
def test_losses_matches_and_gradients_equal_the_official_ones(name, num_points) -> None:
    vectors, layers, targets, draws, module = recorded(name, num_points)
    counts = [len(target.classes) for target in targets]
    draw = Replay(draws, counts)
    for index, matches in enumerate(module.matcher(layers, targets, draw)):
        for image, match in enumerate(matches):
            expected = vectors[f"match/{index}/{image}"]
            assert torch.equal(torch.stack([match.queries, match.segments]), expected)
    check(vectors, layers, module(layers, targets, draw))


@needs_shared
def test_losses_with_given_matches_equal_the_official_guided_ones() -> None:
    vectors, layers, targets, draws, module = recorded("criterion_video_tracker_guided")
    # The three sets before the losses were drawn by the tracker's matcher.
    draw = Replay(draws[3:], [len(target.classes) for target in targets], guided=True)
    matches = [Match(*vectors[f"match/0/{image}"].unbind()) for image in range(5)]
    check(vectors, layers, module(layers, targets, draw, matches=matches))


def random_layers(num_layers=2, num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Prediction(
            torch.randn(num_images, 8, 6, generator=generator).requires_grad_(),
            torch.randn(num_images, 8, 16, 24, generator=generator).requires_grad_(),
        )
        for _ in range(num_layers)
    ]


def image_of(layers, image):
    return [
        Prediction(p.class_logits[image : image + 1], p.mask_logits[image : image + 1])
        for p in layers
    ]


def test_losses_of_micro_batches_add_up_to_those_of_the_batch() -> None:
    module, targets, layers = criterion(), two_targets(), random_layers()
    whole = module(layers, targets, SeededDraw(0, 0, ["a", "b"]))
    divisors = sum(module.divisors([target], 8) for target in targets)
    parts = [
        module(image_of(layers, i), [targets[i]], SeededDraw(0, 0, ["ab"[i]]), divisors=divisors)
        for i in range(2)
    ]
    torch.testing.assert_close(sum(part.total() for part in parts), whole.total())
    for kind in ("classes", "masks", "dice"):
        together = sum(getattr(part, kind) for part in parts)
        torch.testing.assert_close(together, getattr(whole, kind))


def test_an_image_without_segments_only_has_a_class_loss() -> None:
    module, layers = criterion(), random_layers(num_images=1)
    losses = module(layers, [rectangles(classes=[])], SeededDraw(0, 0, ["a"]))
    assert losses.masks.tolist() == losses.dice.tolist() == [0.0, 0.0]
    assert (losses.classes > 0).all()
    losses.total().backward()
    assert all(layer.mask_logits.grad is not None for layer in layers)
    assert not layers[0].mask_logits.grad.any()


def test_a_batch_may_mix_images_with_and_without_segments() -> None:
    module, layers = criterion(), random_layers()
    targets = [rectangles(classes=[]), two_targets()[1]]
    losses = module(layers, targets, SeededDraw(0, 0, ["a", "b"]))
    losses.total().backward()
    assert not layers[0].mask_logits.grad[0].any()
    assert layers[0].mask_logits.grad[1].any()


def test_what_lies_in_the_padding_has_no_loss() -> None:
    targets = [rectangles((0, 0, 64, 40), classes=[1])]
    half = [Targets(targets[0].classes, targets[0].masks, extent=(0.5, 1.0))]
    [layer] = random_layers(1, 1)
    criterion()([layer], half, SeededDraw(0, 0, ["a"])).total().backward()
    touched = layer.mask_logits.grad[0].abs().sum((0, 1)) > 0
    assert touched[:12].any()
    assert not touched[13:].any()  # column 12 is half read by points just inside


def test_nan_predictions_give_a_nan_loss_instead_of_an_error() -> None:
    layers = [Prediction(torch.full((2, 8, 6), torch.nan), torch.full((2, 8, 16, 24), torch.nan))]
    losses = criterion()(layers, two_targets(), SeededDraw(0, 0, ["a", "b"]))
    assert losses.total().isnan()


def test_losses_are_float32_under_autocast_and_equal_to_those_outside() -> None:
    layers = [
        Prediction(p.class_logits.detach().bfloat16(), p.mask_logits.detach().bfloat16())
        for p in random_layers()
    ]
    draw = SeededDraw(0, 0, ["a", "b"])
    with torch.autocast("cpu", torch.bfloat16):
        inside = criterion()(layers, two_targets(), draw)
    outside = criterion()(layers, two_targets(), draw)
    assert inside.total().dtype == torch.float32
    assert torch.equal(inside.masks, outside.masks)
    assert torch.equal(inside.classes, outside.classes)


def test_the_same_seed_step_and_clip_give_the_same_loss_bit_for_bit() -> None:
    module, targets = criterion(), two_targets()
    totals = [
        module(random_layers(), targets, SeededDraw(5, step, ["a", "b"])).total()
        for step in (1, 1, 2)
    ]
    assert torch.equal(totals[0], totals[1])
    assert not torch.equal(totals[0], totals[2])


def test_another_number_of_targets_than_images_is_refused() -> None:
    module, layers = criterion(), random_layers()
    draw = SeededDraw(0, 0, ["a", "b"])
    with pytest.raises(ValueError, match="2 images have 1 targets"):
        module(layers, two_targets()[:1], draw)
    with pytest.raises(ValueError, match="2 images have 0 matches"):
        module(layers, two_targets(), draw, matches=[])
