"""The compiled CUDA kernels on a GPU: what the emulation is held to at more shapes, and more."""

from __future__ import annotations

import os

import pytest
import torch

from fcache.ops import kernels_in_use, ms_deform_attn
from tests.ops import cuda_checks
from tests.ops.cases import CASES, DTYPES, Case
from tests.ops.cuda_checks import Runner

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("FCACHE_REQUIRE_CUDA") != "1",
    reason="there is no CUDA device",
)
GPU_CASES = (
    *CASES,
    Case(1, 30, 2, 32, 4, ((6, 5), (3, 3), (2, 1))),
    Case(2, 130, 4, 32, 4, ((8, 9), (5, 6), (3, 3), (2, 2))),
    Case(1, 100, 2, 96, 2, ((14, 14),)),
    Case(2, 7581, 8, 32, 4, ((76, 76), (38, 38), (19, 19))),  # pixel decoder
    Case(1, 7581, 24, 64, 4, ((38, 38),)),  # extractor of ViT-g
)


@pytest.fixture(scope="module")
def run() -> Runner:
    assert torch.cuda.is_available(), "FCACHE_REQUIRE_CUDA=1, and there is no CUDA device"
    use = kernels_in_use()["cuda"]
    assert use.path == "compiled", use
    return Runner(torch.ops.fcache, "cuda")


@pytest.mark.parametrize("case", GPU_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "sampled"])
def test_values_and_gradients_are_those_of_float64(
    run: Runner, fused: bool, dtype: torch.dtype, case: Case
) -> None:
    args = cuda_checks.inputs_of(fused, case, dtype)
    cuda_checks.agrees_with_float64(run, fused, case, args)


@pytest.mark.parametrize("points", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scores", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("levels", [1, 2])
def test_offsets_and_logits_may_be_float32(
    run: Runner, levels: int, points: torch.dtype, scores: torch.dtype
) -> None:
    case = Case(1, 200, 2, 32, 4, ((15, 14), (8, 7))[:levels])
    args = cuda_checks.mixed_inputs(case, torch.bfloat16, points, scores)
    cuda_checks.agrees_with_float64(run, True, case, args)
    args = cuda_checks.mixed_inputs(case, torch.float64, torch.float32, torch.float32)
    cuda_checks.agrees_with_float64(run, True, case, args)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "sampled"])
def test_nothing_beside_the_inputs_is_read(run: Runner, fused: bool) -> None:
    for case in GPU_CASES[-5:-2]:
        cuda_checks.reads_nothing_beside_its_inputs(run, fused, case)


def test_points_that_are_not_finite_are_ignored(run: Runner) -> None:
    cuda_checks.ignores_points_that_are_not_finite(run)


def test_nan_and_inf_spread_as_in_the_reference(run: Runner) -> None:
    cuda_checks.spreads_nan_and_inf_as_the_reference(run)


def test_infinite_gradients_do_not_reach_points_outside(run: Runner) -> None:
    cuda_checks.keeps_infinite_gradients_from_points_outside(run)


def test_no_queries_or_images_give_empty_results_and_zero_gradients(run: Runner) -> None:
    cuda_checks.has_no_gradients_without_queries_or_images(run)


def test_any_contiguous_view_is_read(run: Runner) -> None:
    cuda_checks.reads_any_contiguous_view(run)


def test_more_images_than_a_grid_has_rows(run: Runner) -> None:
    case = Case(70_000, 1, 1, 8, 1, ((2, 2),))
    cuda_checks.agrees_with_float64(
        run, True, case, cuda_checks.inputs_of(True, case, torch.float32)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_gradients_have_the_same_bits_in_every_run(dtype: torch.dtype) -> None:
    case = GPU_CASES[-2]
    value, flat, reference, offsets, logits = cuda_checks.inputs_of(True, case, dtype)
    levels = list(zip(flat[::2], flat[1::2], strict=True))
    leaves = [tensor.cuda().requires_grad_() for tensor in (value, offsets, logits)]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(5):
            out = ms_deform_attn(leaves[0], levels, reference.cuda(), leaves[1], leaves[2])
            runs.append(torch.autograd.grad(out, leaves, out.detach()))
    finally:
        torch.use_deterministic_algorithms(before)
    for other in runs[1:]:
        assert all(map(torch.equal, runs[0], other))


def test_work_is_queued_on_the_current_stream_and_device(run: Runner) -> None:
    case = Case(1, 300, 4, 32, 4, ((16, 17),))
    args = cuda_checks.inputs_of(True, case, torch.float32)
    expected = run("ms_deform_attn", *args)
    device = torch.cuda.device_count() - 1
    moved = [arg.to(f"cuda:{device}") if isinstance(arg, torch.Tensor) else arg for arg in args]
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        moved[0] = (
            2 * moved[0]
        )  # queued behind the sleep, so a kernel on another stream comes too early
        out = torch.ops.fcache.ms_deform_attn(*moved)
    stream.synchronize()
    torch.testing.assert_close(out.cpu(), 2 * expected)


def test_graph_replays_the_forward_and_the_backward(run: Runner) -> None:
    case = Case(1, 300, 4, 32, 4, ((16, 17), (8, 8), (4, 4)))
    args = cuda_checks.inputs_of(True, case, torch.float32)
    moved = [arg.cuda() if isinstance(arg, torch.Tensor) else arg for arg in args]
    grad = cuda_checks.grad_for(args, torch.float32).cuda()
    ops = torch.ops.fcache

    def both() -> list[torch.Tensor]:
        out = ops.ms_deform_attn(*moved)
        return [out, *ops.ms_deform_attn_backward(grad, *moved, True)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    other = cuda_checks.inputs_of(True, case, torch.float32, seed=5)
    moved[0].copy_(other[0])
    moved[-2].copy_(other[-2])
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, both(), rtol=0, atol=0)
