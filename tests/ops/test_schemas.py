"""The ops in PyTorch's own machinery: opcheck, compile, export, and calls without the wrapper."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fcache.ops import ms_deform_attn, ms_deform_attn_sampled, reference
from tests.ops.cases import Case, fused_inputs, require_compiled, sampled_inputs

CASE = Case(2, 5, 2, 4, 3, ((3, 4), (2, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    require_compiled()
    value, points, offsets, logits = fused_inputs(CASE, dtype)
    leaves = [tensor.detach().requires_grad_() for tensor in (value, offsets, logits)]
    fused = (leaves[0], CASE.flat, points, *leaves[1:])
    torch.library.opcheck(torch.ops.fcache.ms_deform_attn.default, fused, atol=1e-2, rtol=1e-2)
    grad = torch.randn(2, 5, 8, dtype=dtype)
    torch.library.opcheck(
        torch.ops.fcache.ms_deform_attn_backward.default,
        (grad, value, CASE.flat, points, offsets, logits, False),
    )


def test_opcheck_of_the_sampled_form() -> None:
    inputs = sampled_inputs(CASE, torch.float32)
    value, locations, weights = (tensor.detach().requires_grad_() for tensor in inputs)
    torch.library.opcheck(
        torch.ops.fcache.ms_deform_attn_sampled.default, (value, CASE.flat, locations, weights)
    )
    torch.library.opcheck(
        torch.ops.fcache.ms_deform_attn_sampled_backward.default,
        (
            torch.randn(2, 5, 8),
            inputs[0].detach(),
            CASE.flat,
            *map(Tensor.detach, inputs[1:]),
            True,
        ),
    )


class Attention(nn.Module):
    """Linear layers around the op, as in the models."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Linear(8, 2 * 2 * 3 * 2)
        self.logits = nn.Linear(8, 2 * 2 * 3)

    def forward(self, query: Tensor, points: Tensor, value: Tensor) -> Tensor:
        offsets = self.offsets(query).unflatten(-1, (2, 2, 3, 2))
        logits = self.logits(query).unflatten(-1, (2, 6))
        out = ms_deform_attn(value.unflatten(-1, (2, 4)), CASE.levels, points, offsets, logits)
        return 2 * out


def module_inputs(queries: int = 5) -> tuple[Attention, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    module = Attention()
    inputs = (torch.randn(2, queries, 8), torch.rand(1, queries, 1, 2), torch.randn(2, 16, 8))
    return module, inputs


def test_a_compiled_module_gives_the_same_bits_with_gradients() -> None:
    module, inputs = module_inputs()
    out = module(*inputs)
    out.square().sum().backward()
    grads = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = compiled(*inputs)
    assert torch.equal(found, out)
    found.square().sum().backward()
    for parameter, grad in zip(module.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)


def test_inductor_compiles_it_without_a_break() -> None:
    module, inputs = module_inputs()
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), module(*inputs))


def test_one_compiled_graph_serves_any_number_of_queries() -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[object]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    module, _ = module_inputs()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counting)
    for queries in (5, 7, 11):
        _, inputs = module_inputs(queries)
        assert torch.equal(compiled(*inputs), module(*inputs))
    assert len(graphs) == 1


def test_wrong_shapes_are_told_under_compile_too() -> None:
    module, (query, points, value) = module_inputs()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="value has 15 cells"):
        compiled(query, points, value[:, :15])


def test_an_exported_program_runs_in_another_process_from_the_op_alone(tmp_path: Path) -> None:
    module, inputs = module_inputs()
    program = torch.export.export(module, inputs)
    targets = [str(node.target) for node in program.graph.nodes]
    assert "fcache.ms_deform_attn.default" in targets
    saved = io.BytesIO()
    torch.export.save(program, saved)
    (tmp_path / "program.pt2").write_bytes(saved.getvalue())
    torch.save((inputs, module(*inputs)), tmp_path / "case.pt")
    code = (
        "import torch, fcache.ops;"
        "program = torch.export.load('program.pt2').module();"
        "inputs, expected = torch.load('case.pt');"
        "assert torch.equal(program(*inputs), expected);"
        "print(fcache.ops.library.kernel_use('cpu').path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.strip() in {"compiled", "reference"}


def test_the_meta_device_gives_shapes() -> None:
    value, points, offsets, logits = (t.to("meta") for t in fused_inputs(CASE, torch.bfloat16))
    out = ms_deform_attn(value, CASE.levels, points, offsets, logits)
    assert (out.shape, out.dtype, out.device.type) == ((2, 5, 8), torch.bfloat16, "meta")
    value, locations, weights = (t.to("meta") for t in sampled_inputs(CASE, torch.float32))
    assert ms_deform_attn_sampled(value, CASE.levels, locations, weights).shape == (2, 5, 8)


def test_deterministic_algorithms_are_asked_for_when_torch_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.fcache.ms_deform_attn_backward.default:
                asked.append(args[-1])
            return func(*args, **(kwargs or {}))

    module, inputs = module_inputs()
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for wanted in (False, True):
            torch.use_deterministic_algorithms(wanted)
            with Watch():
                module(*inputs).sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert asked == [False, True]


def test_a_second_derivative_is_refused_not_wrong() -> None:
    value, points, offsets, logits = fused_inputs(CASE, torch.float32)
    value.requires_grad_()
    out = ms_deform_attn(value, CASE.levels, points, offsets.requires_grad_(), logits)
    (grad,) = torch.autograd.grad(out.square().sum(), offsets, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_the_op_and_the_public_function_are_one() -> None:
    value, points, offsets, logits = fused_inputs(CASE, torch.float32)
    out = ms_deform_attn(value, CASE.levels, points, offsets, logits)
    assert torch.equal(
        out, torch.ops.fcache.ms_deform_attn(value, CASE.flat, points, offsets, logits)
    )
    plain = reference.ms_deform_attn(value, CASE.flat, points, offsets, logits)
    torch.testing.assert_close(out, plain)
