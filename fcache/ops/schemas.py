"""The operators as the dispatcher knows them: schemas, shapes, gradients, and who computes them.

A compiled library registers itself for its device's key. Until it is loaded, and where there is
none, the kernel of ``CompositeExplicitAutograd`` is what the dispatcher falls through to: it loads
or builds the library, or runs the reference. So a graph that calls the ops directly, exported or
compiled, needs nothing but ``import fcache.ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fcache.ops import library, reference

NAMESPACE = "fcache"
_SAMPLES = {
    "ms_deform_attn": "Tensor reference_points, Tensor offsets, Tensor logits",
    "ms_deform_attn_sampled": "Tensor locations, Tensor weights",
}
OPS = library.OPS

_fragment = torch.library.Library(NAMESPACE, "FRAGMENT")


def _load_or_refer(name: str) -> Callable[..., Any]:
    """Returns the kernel of an op for a device whose library is not loaded."""
    plain = getattr(reference, name)

    def kernel(*args: Any) -> Any:  # noqa: ANN401 - the arguments of any of the ops
        if library.load(args[0].device.type):
            return getattr(torch.ops.fcache, name).default(*args)
        return plain(*args)

    return kernel


def _fake(value: Tensor, level_shapes: Sequence[int], *samples: Tensor) -> Tensor:
    num_images, _, num_heads, head_dim = value.shape
    return value.new_empty(num_images, samples[-1].shape[1], num_heads * head_dim)


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    level_shapes: Sequence[int],
    *samples_and_flag: Tensor,  # the last is the flag
) -> tuple[Tensor, Tensor, Tensor]:
    *_, points, weights, _ = samples_and_flag
    return (
        value.new_empty(value.shape),
        points.new_empty(points.shape),
        weights.new_empty(weights.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    value, ctx.level_shapes, *samples = inputs
    ctx.save_for_backward(value, *samples)


def _gradients(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    backward_op = getattr(torch.ops.fcache, f"{name}_backward")

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        value, *samples = ctx.saved_tensors
        grad_value, grad_points, grad_weights = backward_op(
            grad_output.contiguous(),
            value,
            ctx.level_shapes,
            *samples,
            torch.are_deterministic_algorithms_enabled(),
        )
        # The fused op has reference_points between level_shapes and offsets; it gets no gradient.
        return grad_value, None, *[None] * (len(samples) - 2), grad_points, grad_weights

    return backward


def _refuse(ctx: Any, *grads: Tensor) -> None:  # noqa: ANN401
    # Without this PyTorch warns, and goes on as if the second derivative were zero.
    raise RuntimeError("deformable attention has no second derivative.")


for _name, _arguments in _SAMPLES.items():
    _inputs = f"Tensor value, int[] level_shapes, {_arguments}"
    _fragment.define(f"{_name}({_inputs}) -> Tensor")
    _fragment.define(
        f"{_name}_backward(Tensor grad_output, {_inputs}, bool deterministic)"
        " -> (Tensor, Tensor, Tensor)"
    )
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=_fragment)
    torch.library.register_fake(f"{NAMESPACE}::{_name}_backward", _fake_backward, lib=_fragment)
    torch.library.register_autograd(
        f"{NAMESPACE}::{_name}", _gradients(_name), setup_context=_save, lib=_fragment
    )
    torch.library.register_autograd(f"{NAMESPACE}::{_name}_backward", _refuse, lib=_fragment)
for _name in OPS:
    _fragment.impl(_name, _load_or_refer(_name), "CompositeExplicitAutograd")
