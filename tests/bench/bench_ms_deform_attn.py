"""The fused op against what projects run instead, at the models' shapes, beside the least possible.

    python -m tests.bench.bench_ms_deform_attn [--device cpu|cuda] [--dtype float32,bfloat16]
        [--batch 1] [--px 604] [--rounds 5] [--least] [--json FILE]

Every row is checked against float64 before it is timed. CPU: seconds of one thread, with the memory
of results mapped before (as in a training loop) and fresh, and the clock of two threads; medians
of calls that alternate with the others' or, with ``--least``, the least of calls in a row, whose
inputs are cached. What the core itself allows: ``cpu_limits.cpp``. CUDA: the device's own clock,
with a cold and a warm L2, and the memory at the peak; there the chain around a thread-per-channel
kernel (``unfused_chain.cu``) is built and timed too.

Needs torch, numpy, scipy and safetensors only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fcache.ops import kernels_in_use, reference
from tests.bench.deform_attn_clocks import Row, cpu_rows, gpu_rows, gpu_speeds
from tests.bench.deform_attn_floors import Floor, cpu_floors, gpu_floors
from tests.bench.deform_attn_rivals import (
    Rival,
    Shape,
    build_unfused,
    eager,
    fused,
    make_inputs,
    shapes,
    unfused,
)

# As the tests require; rounding to bfloat16 alone costs 1.66e-3.
MOST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2.2e-3, torch.float16: 2.8e-4}


def error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


def check(name: str, rival: Rival, shape: Shape, inputs: list[Tensor], must: bool) -> Row:
    """Relative l2 errors of the result and of value's and the logits' gradients, in one image.

    Offsets are left out: their gradient jumps at grid lines, and bfloat16 lies on many.

    Raises:
        SystemExit: One is too large and must not be.
    """
    inputs = [tensor[:1] for tensor in inputs]
    flat = [side for level in shape.levels for side in level]
    wide = [tensor.double() for tensor in inputs]
    true = reference.ms_deform_attn(wide[0], flat, *wide[1:])
    grad = torch.randn_like(true).to(inputs[0].dtype)
    true_grads = reference.ms_deform_attn_backward(
        grad.double(), wide[0], flat, *wide[1:], deterministic=False
    )
    grads = rival.both(inputs, grad)
    errors = {
        "error": error(rival.forward(inputs), true),
        "error_grad_value": error(grads[0], true_grads[0]),
        "error_grad_logits": error(grads[2], true_grads[2]),
    }
    most = MOST_ERROR[inputs[0].dtype]
    if must and not max(errors.values()) <= most:
        raise SystemExit(f"{name} is wrong at {shape.name}: {errors}, at most {most}")
    return errors


def bench_shape(shape: Shape, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Row]:
    rivals = {
        "fused": Rival(fused(shape)),
        "grid_sample": Rival(eager(shape, safe=False)),
        "grid_sample, float32 inside": Rival(eager(shape, safe=True)),
    }
    if args.device == "cuda":
        rivals["fused, deterministic"] = Rival(fused(shape), deterministic=True)
        rivals["unfused chain"] = Rival(unfused(shape, args.device))
    inputs = make_inputs(shape, args.batch, dtype, args.device)
    errors = {
        name: check(name, rival, shape, inputs, must=name != "grid_sample")
        for name, rival in rivals.items()
    }
    # PyTorch's CPU grid_sample reads out of bounds there, so that it is not run for its time.
    if args.device == "cpu" and dtype in (torch.bfloat16, torch.float16):
        del rivals["grid_sample"]
    rows = (gpu_rows if args.device == "cuda" else cpu_rows)(rivals, inputs, args.rounds)
    return {name: {**errors[name], **row} for name, row in rows.items()}


def show(rows: dict[str, Row], floors: tuple[Floor, Floor], least: bool) -> None:
    """Prints the rows of one shape and dtype, ratios of medians or of least times."""
    base = rows["fused"]
    kind = "_least_ms" if least else "_ms"
    print(f"  floors: forward {floors[0]}, both ways {floors[1]}")
    for name, row in rows.items():
        cells = []
        for way, floor in zip(("forward", "both"), floors, strict=True):
            ms = row[way + kind]
            times = ms / base[way + kind]
            cells.append(f"{way} {ms:8.3f} ms {times:6.2f}x {floor.ms / ms:6.1%} of floor")
        extra = [
            f"{key} {value:.3g}"
            for key, value in row.items()
            if key not in ("forward" + kind, "both" + kind) and not key.startswith("error_")
        ]
        print(f"  {name:28} {' | '.join(cells)} | {', '.join(extra)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--px", type=int, default=604)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", default="pixel decoder,extractor,injector")
    # Of a core's L2 on a Zen 5; another machine's floor needs its own.
    parser.add_argument("--l2-read", type=float, default=244.0, metavar="GB/S")
    parser.add_argument("--l2-copy", type=float, default=158.0, metavar="GB/S")
    parser.add_argument("--least", action="store_true", help="least of calls in a row (CPU)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device.")
    use = kernels_in_use()[args.device]
    print(f"torch {torch.__version__}, batch {args.batch}, {args.px} px, {use}")
    if use.path != "compiled":
        raise SystemExit("There are no compiled kernels to time.")
    speeds = (0.0, 0.0, 0)
    if args.device == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            build_unfused(Path(folder))
        speeds = gpu_speeds()
        name = torch.cuda.get_device_name()
        print(f"{name}: copies {speeds[0]:.0f} GB/s, {speeds[1]:.3f} GHz, {speeds[2]} processors")
    results: list[Row] = []
    for shape in shapes(args.px):
        if shape.name not in args.shapes.split(","):
            continue
        for dtype_name in args.dtype.split(","):
            dtype: torch.dtype = getattr(torch, dtype_name)
            print(f"{shape.name}, {dtype_name}")
            rows = bench_shape(shape, dtype, args)
            if args.device == "cuda":
                floors = gpu_floors(shape, args.batch, dtype.itemsize, *speeds)
            else:
                floors = cpu_floors(shape, args.batch, 4, args.l2_read, args.l2_copy)
            show(rows, floors, args.least and args.device == "cpu")
            sys.stdout.flush()
            results += [
                {"shape": shape.name, "dtype": dtype_name, "row": name, **row}
                for name, row in rows.items()
            ]
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
