"""The CUDA kernels without a GPU: their own source, run by an emulation on the CPU.

``emulation/cuda_runtime.h`` stands in for CUDA's header, so that the C++ compiler takes the kernels
as they are. It finds wrong numbers, wrong indices, lanes that part before a shuffle, and results
that depend on the order in which blocks and lanes run. It cannot find what only a GPU does: its
speed, its memory ordering, and the ``red`` instruction that stands behind atomic additions there.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fcache.errors import KernelError
from fcache.ops.build import TORCH_TARGET, find_compiler, source_folder
from tests.ops import cuda_checks
from tests.ops.cases import CASES, DTYPES, Case
from tests.ops.cuda_checks import Runner

EMULATION = Path(__file__).parent / "emulation"
# Of the shapes of all paths, those a coroutine per CUDA thread can afford, and more for the
# specialised kernels: every number of levels with heads of 32 and 64 channels.
SMALL_CASES = (
    *(case for case in CASES if case.batch * case.queries * case.heads <= 512),
    Case(1, 21, 2, 32, 4, ((5, 3),)),
    Case(1, 30, 2, 32, 4, ((6, 5), (3, 3), (2, 1))),  # as in the injector
    Case(1, 13, 1, 32, 4, ((5, 6), (3, 3), (2, 2), (1, 1))),
    Case(1, 46, 1, 64, 4, ((3, 3),)),
    Case(1, 84, 1, 64, 4, ((8, 8), (4, 4), (2, 2))),  # every cell asks
    Case(1, 5, 1, 96, 2, ((4, 4),)),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    try:
        compiler = find_compiler("cpu")
    except KernelError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("emulation") / "emulated.so"
    at = Path(torch.__file__).parent
    words = [
        *compiler.words, "-std=c++17", "-O1", "-fPIC", "-shared", "-U_FORTIFY_SOURCE",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        f"-I{EMULATION}", f"-I{source_folder()}", "-isystem", str(at / "include"),
        str(EMULATION / "emulated_ops.cpp"), "-o", str(out), f"-L{at / 'lib'}", "-ltorch_cpu",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    torch.ops.load_library(out)
    loaded = ctypes.CDLL(str(out))
    loaded.run_faulty.restype = ctypes.c_char_p
    loaded.set_sort_scratch.argtypes = [ctypes.c_int64]
    loaded.set_sort_scratch.restype = ctypes.c_int64
    loaded.image_launches.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return loaded


@pytest.fixture
def run(library: ctypes.CDLL) -> Iterator[Runner]:
    library.set_seed(0)
    yield Runner(torch.ops.fcache_emulated, "cpu")
    library.set_seed(0)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
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
    case = Case(1, 12, 2, 32, 4, ((5, 4), (3, 2))[:levels])
    args = cuda_checks.mixed_inputs(case, torch.bfloat16, points, scores)
    cuda_checks.agrees_with_float64(run, True, case, args)
    args = cuda_checks.mixed_inputs(case, torch.float64, torch.float32, torch.float32)
    cuda_checks.agrees_with_float64(run, True, case, args)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "sampled"])
def test_nothing_beside_the_inputs_is_read(run: Runner, fused: bool) -> None:
    for case in SMALL_CASES[-6:]:
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


def test_deterministic_gradients_do_not_depend_on_the_order_of_blocks_and_lanes(
    run: Runner, library: ctypes.CDLL
) -> None:
    case = Case(2, 90, 2, 32, 4, ((4, 4), (2, 2), (1, 1)))
    args = cuda_checks.inputs_of(True, case, torch.float32)
    grad = cuda_checks.grad_for(args, torch.float32)
    found: dict[bool, list[list[torch.Tensor]]] = {False: [], True: []}
    for seed in range(1, 5):
        library.set_seed(seed)
        for deterministic in (False, True):
            grads = run("ms_deform_attn_backward", grad, *args, deterministic)
            found[deterministic].append(grads)
    first = found[True][0]
    for other in found[True][1:]:
        assert all(map(torch.equal, first, other))
    # Otherwise the seeds do not reach far enough for this test to mean anything.
    assert any(not torch.equal(found[False][0][0], other[0]) for other in found[False][1:])


def test_deterministic_gradients_of_an_image_do_not_depend_on_its_neighbours(
    run: Runner, library: ctypes.CDLL
) -> None:
    case = Case(5, 70, 2, 32, 4, ((4, 4), (2, 3)))
    args = cuda_checks.inputs_of(True, case, torch.float32)
    grad = cuda_checks.grad_for(args, torch.float32)
    whole = run("ms_deform_attn_backward", grad, *args, True)[0]
    alone = [args[0][3:4], args[1], args[2], args[3][3:4], args[4][3:4]]
    one = run("ms_deform_attn_backward", grad[3:4], *alone, True)[0]
    assert torch.equal(whole[3:4], one)

    before = library.set_sort_scratch(2 * 2 * 70 * 8 * 16 + 4096)  # two images at a time
    try:
        in_passes = run("ms_deform_attn_backward", grad, *args, True)[0]
    finally:
        library.set_sort_scratch(before)
    assert torch.equal(whole, in_passes)


def test_more_images_than_a_grid_has_rows_are_launched_in_turns(library: ctypes.CDLL) -> None:
    launches = np.zeros((8, 2), np.int64)
    count = library.image_launches(7, 150_000, launches.ctypes.data)
    assert launches[:count].tolist() == [[7, 65535], [65542, 65535], [131077, 18930]]


def test_emulation_notices_lanes_that_part(library: ctypes.CDLL) -> None:
    assert b"lanes of a warp meet in lines" in library.run_faulty(0)
    assert b"wait for others that never come" in library.run_faulty(1)


def test_wrong_sizes_are_refused(run: Runner) -> None:
    case = Case(1, 5, 2, 32, 4, ((4, 4),))
    args = cuda_checks.inputs_of(True, case, torch.float32)
    with pytest.raises(RuntimeError, match="its levels hold 12"):
        run("ms_deform_attn", args[0], [4, 3], *args[2:])
    with pytest.raises(RuntimeError, match="logits has size 3 in axis 3, expected 4"):
        run("ms_deform_attn", *args[:4], args[4][..., :3].contiguous())


def test_quotients_are_exact(library: ctypes.CDLL) -> None:
    for divisor in (*range(1, 260), 608, 4095, 4096, 4097, 65537, 10**6, 2**31 - 1):
        assert library.wrong_quotients(divisor, 0, 3000) == 0
        assert library.wrong_quotients(divisor, 2**31 - 3000, 3000) == 0
        multiple = (2**31 - 1) // divisor // 2 * divisor
        assert library.wrong_quotients(divisor, max(0, multiple - 50), 100) == 0


def walked(library: ctypes.CDLL, shapes: tuple[tuple[int, int], ...], queries: int) -> np.ndarray:
    """Rows of (grid, y, x, index), by position."""
    flat = np.array(shapes, np.int32).ravel()
    places = np.zeros((queries, 4), np.int32)
    library.walk(
        len(shapes), ctypes.c_void_p(flat.ctypes.data), queries, ctypes.c_void_p(places.ctypes.data)
    )
    return places


def test_every_query_is_computed_once(library: ctypes.CDLL) -> None:
    sides = (1, 2, 3, 7, 8, 9, 15, 16, 17, 19, 38, 76)
    for height in sides:
        for width in sides:
            shapes = ((height, width), (3, 5), (1, 1))
            cells = height * width
            for queries in (cells + 16, cells, cells + 3):
                places = walked(library, shapes, queries)
                assert np.array_equal(np.sort(places[:, 3]), np.arange(queries)), (shapes, queries)
            pyramid = 5 * cells + (height + 1) // 2 * ((width + 1) // 2)
            places = walked(library, ((height, width),), pyramid)
            assert np.array_equal(np.sort(places[:, 3]), np.arange(pyramid))
            assert places[-1, 0] == (2 if pyramid != cells else 0)


def test_cells_are_walked_with_their_coordinates_in_compact_tiles(library: ctypes.CDLL) -> None:
    shapes = ((76, 76), (38, 38), (19, 19))
    start = np.array([0, 76 * 76, 76 * 76 + 38 * 38])
    places = walked(library, shapes, 7581)
    grid, y, x, index = places.T
    width = np.array([76, 38, 19])[grid]
    assert np.array_equal(index, start[grid] + y * width + x)
    assert (x < width).all()
    tiles = places[: 76 * 76 // 64 * 64].reshape(-1, 64, 4)
    spans = tiles.max(1) - tiles.min(1) + 1
    compact = (spans[:, 1] <= 8) & (spans[:, 2] <= 9)  # else a tile bridges two strips
    assert compact.mean() > 0.85


def test_each_cell_finds_the_points_around_it(library: ctypes.CDLL) -> None:
    shapes = ((3, 4), (1, 1), (2, 5))
    flat = np.array(shapes, np.int32).ravel()
    args = (len(shapes), ctypes.c_void_p(flat.ctypes.data))
    seen = set()
    for level, (height, width) in enumerate(shapes):
        for y in range(-3, height + 3):
            for x in range(-3, width + 3):
                bucket = library.bucket(*args, level, y, x)
                touches = -1 <= y < height and -1 <= x < width
                assert (bucket >= 0) == touches
                if touches:
                    seen.add(bucket)
        for y in range(height):
            for x in range(width):
                for below in (0, 1):
                    first = library.first_bucket(*args, level, y, x, below)
                    row = y - 1 + below
                    assert first == library.bucket(*args, level, row, x - 1)
                    assert first + 1 == library.bucket(*args, level, row, x)
    assert seen == set(range(library.num_buckets(*args)))
