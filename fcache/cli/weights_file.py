"""Files of weights, written whole or not at all."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fcache.cli.output import human_bytes
from fcache.errors import CacheError, ConfigError, NoSpaceError
from fcache.store.files import published


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors, with copies of those that share memory, as tied weights do.

    No ``.safetensors`` file can hold shared memory.
    """
    seen: set[int] = set()
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        if start in seen:
            tensors[name] = tensor.clone()
        seen.add(start)
    return tensors


def write_weights(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> int:
    """Writes a file of weights whole or not at all, and returns its size in bytes.

    Args:
        path: A ``.safetensors`` file, or a ``.pth`` file as detectron2 reads it.
        tensors: None shares memory with another.
        about: What a ``.safetensors`` file says of itself.

    Raises:
        NoSpaceError: the disk is full; nothing is left behind.
        ConfigError: the folder cannot be written to.
    """
    try:
        with published(path) as partial:
            _save(partial, path.suffix, tensors, about)
            size_bytes = partial.stat().st_size
    except NoSpaceError:
        size = human_bytes(sum(tensor.nbytes for tensor in tensors.values()))
        raise NoSpaceError(
            f"no space left for the {size} of '{path}'; it was not written."
        ) from None
    except CacheError as error:
        raise ConfigError(error.message) from None
    return size_bytes


def _save(path: Path, suffix: str, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    if suffix == ".pth":
        buffer = io.BytesIO()
        torch.save({"model": dict(tensors)}, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        try:
            save_file(dict(tensors), path, {"format": "pt", **about})
        except SafetensorError as error:
            # The library tells of a full disk in words alone.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error
