"""Memory that arrays of any shape are cut from."""

from __future__ import annotations

import numpy as np

from fcache.data.arena import ALIGN_BYTES, Arena


def take_all(arena: Arena, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    arena.reset()
    return [arena.take(shape, dtype) for shape, dtype in zip(shapes, KINDS, strict=True)]


KINDS = ["float16", "uint8", "bool"]
SHAPES = [(3, 5, 2), (7,), (0, 4, 4)]


def test_arrays_have_their_shape_and_type_and_do_not_overlap() -> None:
    arena = Arena()
    for _ in range(3):
        arrays = take_all(arena, SHAPES)
        assert [(array.shape, str(array.dtype)) for array in arrays] == list(
            zip(SHAPES, KINDS, strict=True)
        )
        for number, array in enumerate(arrays):
            array[...] = number + 1
            assert array.flags.c_contiguous
        assert (arrays[0] == 1).all()
        assert (arrays[1] == 2).all()


def test_the_same_memory_is_used_again_once_it_is_large_enough() -> None:
    arena = Arena()
    take_all(arena, SHAPES)
    first = take_all(arena, SHAPES)
    size = arena.size_bytes
    smaller = take_all(arena, [(2, 2), (3,), (0,)])
    again = take_all(arena, SHAPES)
    assert [a.ctypes.data for a in again[:2]] == [a.ctypes.data for a in first[:2]]
    assert np.shares_memory(smaller[0], first[0])
    assert arena.size_bytes == size <= 60 + 7 + 2 * ALIGN_BYTES


def test_arrays_that_do_not_fit_yet_are_whole_too() -> None:
    arena = Arena()
    small = arena.take((4,), "int64")
    large = arena.take((1000,), "int64")
    small[:], large[:] = 1, 2
    assert small.tolist() == [1] * 4
    assert arena.size_bytes == 0
    arena.reset()
    assert arena.size_bytes >= 8032
    assert arena.take((1000,), "int64").ctypes.data % ALIGN_BYTES == 0
