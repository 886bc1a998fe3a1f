"""Weights: where they come from, whether they fit, and the hash that names them.

The hash is over values, not files: sha256 over the name-sorted tensors that decide the function,
each as name, shape and little-endian float32 bytes, under timm's names and before the patch kernel
is resized. The same values from a float16 file, a ``.pth`` and the hub are the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from fcache.backbones.checkpoint import Tensors, open_checkpoint, strip_prefix
from fcache.backbones.description import Blueprint, Shape, pretrained_config
from fcache.backbones.pyramid import build_net, in_timm_names
from fcache.backbones.vit import outline
from fcache.config import BackboneSettings
from fcache.errors import WeightsError

# Tables and counters that older files carry although the code computes them.
COMPUTED = ("relative_position_index", "attn_mask", "num_batches_tracked", "mask_token")


class WeightsHasher:
    """sha256 over tensors fed in the order of their names."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, name: str, tensor: Tensor) -> None:
        """Adds one tensor: its name, its shape and its float32 bytes."""
        values = tensor.detach().cpu().contiguous().float().numpy().astype("<f4", copy=False)
        self._hash.update(f"{name}\0{json.dumps(list(values.shape))}\0".encode())
        self._hash.update(values.data)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns the hash of named tensors, the same for any order, dtype and file format."""
    hasher = WeightsHasher()
    for name in sorted(tensors):
        hasher.update(name, tensors[name])
    return hasher.hexdigest()


def open_weights(settings: BackboneSettings, blueprint: Blueprint) -> Tensors:
    """Returns the weights the settings name, checked against the blueprint, none read yet.

    Raises:
        WeightsError: they cannot be found or read, or belong to another architecture.
    """
    kind, colon, seed = settings.weights.partition(":")
    if kind == "random" and colon:
        if not seed.isdecimal():
            raise WeightsError(
                f"weights='{settings.weights}' has no seed; expected random:SEED, for example "
                f"random:0."
            )
        return random_tensors(blueprint.shapes, int(seed))
    if settings.weights == "hub":
        return _check(_open_hub(settings, blueprint), blueprint)
    path = Path(settings.weights).expanduser()
    if not path.suffix:
        raise WeightsError(
            f"weights='{settings.weights}' is neither hub nor random:SEED nor a file; expected, "
            f"for example, random:0 or model.safetensors."
        )
    opened = strip_prefix(open_checkpoint(path), blueprint.shapes)
    return _check(_fold_class_position(opened, blueprint), blueprint)


def random_tensors(shapes: Mapping[str, Shape], seed: int) -> Tensors:
    """Returns made-up weights that are the same on every machine.

    Each tensor has its own stream, keyed by seed and name, of uniform numbers (whose float32
    values need no libm): weights with variance 1 / fan-in, tokens, positions and tables with a
    standard deviation of 0.02. Norm weights, running variances and LayerScale are one (at timm's
    1e-5 every block would be nearly the identity), biases and running means zero.
    """

    def read(name: str) -> Tensor:
        shape = shapes[name]
        leaf = name.rpartition(".")[2]
        if leaf in {"bias", "running_mean"}:
            return torch.zeros(shape)
        if len(shape) < 2:
            return torch.ones(shape)
        std = 1 / math.sqrt(math.prod(shape[1:])) if leaf == "weight" else 0.02
        key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
        values = np.random.Generator(np.random.Philox(key=key)).random(shape, dtype=np.float32)
        values -= np.float32(0.5)
        values *= np.float32(std * math.sqrt(12))
        return torch.from_numpy(values)

    return Tensors(shapes, read, f"random:{seed}")


def _open_hub(settings: BackboneSettings, blueprint: Blueprint) -> Tensors:
    config = pretrained_config(outline(settings.model))
    # timm may fall back to random weights with a warning; those must never be taken for the hub's.
    if not any(config.get(source) for source in ("hf_hub_id", "url", "file", "state_dict")):
        raise WeightsError(
            f"weights='hub': timm knows no pretrained weights of '{settings.model}'; pass "
            f"weights=FILE (a local .safetensors or .pth) or weights=random:SEED."
        )
    try:
        if blueprint.description.kind == "vit":
            state = timm.create_model(settings.model, pretrained=True).state_dict()
        else:
            net = build_net(settings, pretrained=True)
            state = in_timm_names(net.state_dict(), outline(settings.model).state_dict())
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"weights='hub' of '{settings.model}' cannot be had ({reason}); pass weights=FILE "
            f"(a local .safetensors or .pth) or weights=random:SEED."
        ) from None
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    label = f"{blueprint.description.model}.{config.get('tag') or ''}".rstrip(".")
    return Tensors(shapes, lambda name: state[name].float(), f"hub {label}")


def _fold_class_position(opened: Tensors, blueprint: Blueprint) -> Tensors:
    """Adds Meta's class position to the class token where timm's model keeps no such entry.

    Meta's register models embed the class token before registers are put in; timm's carry the sum,
    which is the same function.
    """
    shape = opened.shapes.get("pos_embed", ())
    if blueprint.pos_prefix != 0 or "cls_token" not in opened.shapes or len(shape) != 3:
        return opened
    if _is_square(shape[1]) or not _is_square(shape[1] - 1):
        return opened

    def read(name: str) -> Tensor:
        if name == "cls_token":
            return opened.read(name) + opened.read("pos_embed")[:, :1]
        return opened.read(name)[:, 1:] if name == "pos_embed" else opened.read(name)

    shapes = {**opened.shapes, "pos_embed": (shape[0], shape[1] - 1, shape[2])}
    return Tensors(shapes, read, opened.source)


def _check(opened: Tensors, blueprint: Blueprint) -> Tensors:
    missing = sorted(set(blueprint.shapes) - set(opened.shapes))
    unexpected = sorted(
        name
        for name in set(opened.shapes) - set(blueprint.shapes) - blueprint.spare
        if name.rpartition(".")[2] not in COMPUTED
    )
    reshaped = [
        f"{name} {list(opened.shapes[name])} instead of {list(shape)}"
        for name, shape in sorted(blueprint.shapes.items())
        if name in opened.shapes and not _fits(name, opened.shapes[name], shape, blueprint)
    ]
    if missing or unexpected or reshaped:
        raise WeightsError(
            f"{opened.source} does not fit model='{blueprint.description.model}': "
            f"{_count(missing, 'missing')}; {_count(unexpected, 'unexpected')}; "
            f"{_count(reshaped, 'of another shape')}. Nothing was loaded; expected weights of "
            f"this architecture."
        )
    shapes = {name: opened.shapes[name] for name in blueprint.shapes}
    return Tensors(shapes, opened.read, opened.source)


def _count(names: list[str], what: str) -> str:
    shown = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{len(names)} {what}{shown}"


def _fits(name: str, found: Shape, wanted: Shape, blueprint: Blueprint) -> bool:
    """Same shape; or positions on another square grid, or a kernel resized to the wanted patch."""
    if found == wanted or blueprint.description.kind != "vit":
        return found == wanted
    if name == "pos_embed" and blueprint.pos_prefix is not None and len(found) == 3:
        return (found[0], found[2]) == (1, wanted[2]) and _is_square(
            found[1] - blueprint.pos_prefix
        )
    patch = blueprint.description.patch
    return name == "patch_embed.proj.weight" and found == (*wanted[:2], patch, patch)


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor where a parameter or buffer of that name stands, frozen."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        assert leaf in owner._buffers
        owner._buffers[leaf] = tensor


def stream(tensors: Tensors, use: Callable[[str, Tensor], None], *, keep_hash: bool = True) -> str:
    """Reads each tensor once, in the order of names, hands it on, and returns the hash.

    With ``keep_hash=False`` nothing is hashed and the result is empty.
    """
    hasher = WeightsHasher()
    names = sorted(tensors.shapes)
    # Reading or drawing the next tensor overlaps hashing this one; both release the GIL.
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(tensors.read, names[0])
        for name, following in zip(names, [*names[1:], None], strict=True):
            tensor = coming.result()
            if following is not None:
                coming = reader.submit(tensors.read, following)
            if keep_hash:
                hasher.update(name, tensor)
            use(name, tensor)
    return hasher.hexdigest() if keep_hash else ""
