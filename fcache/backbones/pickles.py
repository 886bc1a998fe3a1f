"""Plain pickles of numpy arrays, as detectron2's model zoo keeps them, read without running code.

A pickle names the functions that rebuild its objects. Here only those of numpy arrays are known,
and each is replaced by one of this module that copies numbers; any other name ends the reading.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS = "fiub"  # kinds of numpy types: floats, integers, booleans
WORDS = "SU"  # texts of fixed length: read past, they are no weights


class ForeignObjectError(pickle.UnpicklingError):
    """The pickle asks for something that is neither an array nor a plain value."""


class _Dtype:
    """Stands in for ``numpy.dtype``: a type of plain bytes, never of objects."""

    def __init__(self, spec: object = None, *_: object) -> None:
        self.numpy = np.dtype(spec) if isinstance(spec, str) else np.dtype("V")
        if self.numpy.kind not in NUMBERS + WORDS:
            raise ForeignObjectError(f"an array of {spec!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``: numbers that are copied out of the file's bytes."""

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, is_fortran, raw = state[-4:]
        self.values = _copied(raw, dtype, shape, "F" if is_fortran else "C")


def _copied(raw: bytes | bytearray | str, dtype: _Dtype, shape: Any, order: str) -> NDArray[Any]:  # noqa: ANN401
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # of Python 2
    flat = np.frombuffer(data, dtype.numpy)
    layout: Any = order
    return np.array(flat.reshape(shape, order=layout), dtype.numpy.newbyteorder("="), order="C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: bytes, dtype: _Dtype, shape: Any, order: str) -> _Array:  # noqa: ANN401
    array = _Array()
    array.values = _copied(raw, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, raw: bytes | str) -> Any:  # noqa: ANN401 - a number
    return _copied(raw, dtype, (), "C").item()


def _encode(text: str, *_: object) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes in protocol 2


def _no_bytes(*_: object) -> bytes:
    return b""  # how Python 3 writes no bytes in protocol 2


KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _from_buffer),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        known = KNOWN.get(f"{module}.{name}")
        if known is None:
            raise ForeignObjectError(f"{module}.{name}")
        return known

    def persistent_load(self, pid: object) -> Any:  # noqa: ANN401
        raise ForeignObjectError("a reference to another file")


def load_arrays(path: Path) -> Any:  # noqa: ANN401 - whatever is nested around the arrays
    """Returns what a pickle holds, its arrays as numpy arrays.

    Raises:
        ForeignObjectError: it asks for a function or a class besides numpy's arrays; none was run.
        ValueError: it is truncated, or no pickle.
    """
    with path.open("rb") as file:
        try:
            return _plain(_ArrayUnpickler(file, encoding="latin1").load())
        except ForeignObjectError:
            raise
        # What damaged bytes lead the unpickler into; each comes from reading them alone.
        except (
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
            MemoryError,
            struct.error,
        ) as error:
            raise ValueError(f"truncated or no pickle ({error or type(error).__name__})") from error


def _plain(content: Any) -> Any:  # noqa: ANN401
    if isinstance(content, _Array):
        return content.values
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return content
