"""Checkpoint files as named tensors that are read one at a time.

Reads ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` through ``torch.load(weights_only=True)``, and
the numpy arrays of a plain ``.pkl``. No file is ever let run code.
Nested tables are flattened, and what stands before a backbone's own names is found by matching
them: ``teacher.backbone.``, ``image_encoder.trunk.`` and the like need no list.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fcache.backbones.description import Shape
from fcache.backbones.pickles import NUMBERS, ForeignObjectError, load_arrays
from fcache.errors import WeightsError

SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".safetensors")
# Names in Meta's files -> names in timm: the SwiGLU of DINOv2, its registers, its blocks in chunks
# (training checkpoints), and the MLP of SAM 2's trunk.
RENAMES = (
    (re.compile(r"\bmlp\.w12\."), "mlp.fc1."),
    (re.compile(r"\bmlp\.w3\."), "mlp.fc2."),
    (re.compile(r"\bregister_tokens$"), "reg_token"),
    (re.compile(r"\bblocks\.\d+\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"\bmlp\.layers\.0\."), "mlp.fc1."),
    (re.compile(r"\bmlp\.layers\.1\."), "mlp.fc2."),
)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Named tensors on the CPU: their shapes at once, their values one by one.

    Values are in float32, unless the file was opened for its own types.
    """

    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    source: str


def open_checkpoint(path: Path, *, exact: bool = False, key: str = "weights=") -> Tensors:
    """Returns every tensor of a file under its flattened name.

    Args:
        path: The file.
        exact: Keep each tensor's type instead of float32.
        key: What stands before the path in the text of an error.

    Raises:
        WeightsError: the file is missing, of another kind, unreadable, or holds no tensors.
    """
    told = f"{key}'{path}'"
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"{told} has the suffix '{path.suffix}'; expected {', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        known = "hub, random:SEED or a checkpoint file" if key else "a checkpoint file"
        raise WeightsError(f"{told} does not exist; expected {known}.")
    try:
        opened = _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{told} cannot be read: {reason.rstrip('.')}.") from None
    except pickle.UnpicklingError as error:
        which = f" ({error})" if isinstance(error, ForeignObjectError) else ""
        raise WeightsError(
            f"{told} holds Python objects besides tensors{which}, which are never unpickled "
            f"(torch.load, weights_only=True); expected a file of tensors only."
        ) from None
    if not opened.shapes:
        raise WeightsError(f"{told} holds no tensors.")
    if exact:
        return opened
    return Tensors(opened.shapes, lambda name: opened.read(name).float(), opened.source)


def _open_safetensors(path: Path) -> Tensors:
    file: Any = safe_open(path, framework="pt", device="cpu")  # its methods carry no types
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return Tensors(shapes, file.get_tensor, f"file {path.name}")


def _open_torch(path: Path) -> Tensors:
    # Files of torch before 1.6 are no zip archives and cannot be mapped into memory.
    with path.open("rb") as opened:
        is_zip = opened.read(2) == b"PK"
    if path.suffix == ".pkl" and not is_zip:
        content = load_arrays(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    tensors = dict(_flatten("", content))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Tensors(shapes, lambda name: tensors[name].detach(), f"file {path.name}")


def _flatten(prefix: str, content: Any) -> Iterable[tuple[str, Tensor]]:  # noqa: ANN401
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, np.ndarray) and content.dtype.kind in NUMBERS:
        yield prefix, torch.from_numpy(content)
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), value)


def strip_prefix(opened: Tensors, wanted: Iterable[str]) -> Tensors:
    """Returns the tensors below the prefix that holds most of the wanted names, in timm's names.

    Of two prefixes that hold equally many, a teacher or a moving average comes first, then the
    shorter one: the copy that is meant for use. Names are read as Meta's only where that finds
    more: ``blocks.0.1.`` is a block in a chunk there, and a block in a stage elsewhere.
    """
    wanted = frozenset(wanted)
    spellings = ({name: name for name in opened.shapes}, {_rename(n): n for n in opened.shapes})
    found = [(names, *_best_prefix(names, wanted)) for names in spellings]
    names, prefix, _ = max(found, key=lambda choice: choice[2])
    inside = {
        name.removeprefix(prefix): original
        for name, original in names.items()
        if name.startswith(prefix)
    }
    return Tensors(
        {name: opened.shapes[original] for name, original in inside.items()},
        lambda name: opened.read(inside[name]),
        f"{opened.source} ({prefix.rstrip('.')})" if prefix else opened.source,
    )


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _best_prefix(names: Iterable[str], wanted: frozenset[str]) -> tuple[str, int]:
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in wanted:
                found["".join(f"{part}." for part in parts[:depth])] += 1
    if not found:
        return "", 0

    def rank(prefix: str) -> tuple[int, bool, int]:
        meant = "teacher" in prefix or "ema" in prefix.replace("_", ".").split(".")
        return (-found[prefix], not meant, len(prefix))

    best = min(found, key=rank)
    return best, found[best]
