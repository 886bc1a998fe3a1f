from __future__ import annotations

import datetime
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from fcache.backbones.checkpoint import open_checkpoint
from fcache.backbones.pickles import ForeignObjectError, load_arrays
from fcache.errors import WeightsError

ARRAYS = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "transposed": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    "big_endian": np.arange(5, dtype=">f8"),
    "count": np.array(7, dtype=np.int64),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_pickle_protocol_come_out_as_they_went_in(tmp_path, protocol) -> None:
    content = {
        "model": OrderedDict(ARRAYS),
        "__author__": "x",
        "epochs": 3,
        "best": np.float64(0.5),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = load_arrays(tmp_path / "a.pkl")
    assert (loaded["__author__"], loaded["epochs"], loaded["best"]) == ("x", 3, 0.5)
    assert loaded["model"].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        found = loaded["model"][name]
        assert found.dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found, array)


def test_a_pickle_of_python_2_is_read(tmp_path) -> None:
    # What Python 2 wrote: strings of bytes, and numpy's old module.
    written = (
        b"\x80\x02}q\x00U\x06weightq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\x09"
        b"U\x02f4q\x0aK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\x0dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tq\x0eb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0q\x0ftq\x10bs."
    )
    (tmp_path / "two.pkl").write_bytes(written)
    assert np.array_equal(load_arrays(tmp_path / "two.pkl")["weight"], np.float32([1, -2]))


def test_a_checkpoint_of_arrays_is_opened_like_any_other(tmp_path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": ARRAYS, "names": np.array(["a"])}))
    opened = open_checkpoint(tmp_path / "a.pkl")
    assert opened.shapes == {f"model.{name}": array.shape for name, array in ARRAYS.items()}
    assert opened.read("model.count").dtype == torch.float32
    exact = open_checkpoint(tmp_path / "a.pkl", exact=True)
    assert exact.read("model.count").dtype == torch.int64
    assert torch.equal(exact.read("model.weight"), torch.from_numpy(ARRAYS["weight"]))


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, suffix) -> None:
    path, trace = tmp_path / f"a.{suffix}", tmp_path / "it-ran"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "code": Runs(trace)}))
    with pytest.raises(WeightsError):
        open_checkpoint(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # the file would have run it


def test_what_is_no_number_is_refused_by_name(tmp_path) -> None:
    path = tmp_path / "a.pkl"
    for content, named in (
        (datetime.date(2026, 1, 1), "datetime.date"),
        (np.array([{}], dtype=object), "an array of 'O8'"),
        (torch.zeros(2), r"torch\._utils\._rebuild_tensor_v2"),
    ):
        path.write_bytes(pickle.dumps({"x": content}))
        with pytest.raises(ForeignObjectError, match=named):
            load_arrays(path)
        with pytest.raises(WeightsError, match=rf"holds Python objects besides tensors \({named}"):
            open_checkpoint(path)


def test_a_damaged_pickle_is_refused_wherever_it_ends(tmp_path) -> None:
    whole = pickle.dumps({"model": {"weight": ARRAYS["weight"]}})
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        (tmp_path / "a.pkl").write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="truncated or no pickle"):
            open_checkpoint(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_text("no checkpoint")
    with pytest.raises(WeightsError, match=r"a\.pkl' cannot be read: "):
        open_checkpoint(tmp_path / "a.pkl")


def test_no_flipped_bit_escapes_the_reader(tmp_path) -> None:
    whole = pickle.dumps({"model": {"weight": np.float32([1, 2])}, "n": np.float32(1)})
    path = tmp_path / "a.pkl"
    outcomes = set()
    for position in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            open_checkpoint(path)
            outcomes.add("read")
        except WeightsError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
