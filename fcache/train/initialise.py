"""``init=``: weights that a run starts from, of a checkpoint of ours or an official one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fcache.errors import ConfigError, WeightsError
from fcache.models.official import SEGMENTER_KEYS, import_official
from fcache.train.checkpoint import MODEL, read_tensors

# They follow from the number of categories; the official name, and ours.
CLASS_WEIGHTS = frozenset({"criterion.empty_weight", "criterion.class_weight"})
# A head for other categories is left as it is drawn: COCO's 133 classes become VIPSeg's 124.
CATEGORY_PARTS = ("masked_decoder.class_head.",)
# The ReID head of DVIS++ and CTVIS serves their trackers; a segmenter without one leaves it out.
OPTIONAL_PARTS = ("masked_decoder.reid_head.",)
BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Initialised:
    """What became of the weights.

    Attributes:
        num_loaded: Tensors that were taken.
        fresh: Those that keep their first values, being for another number of categories.
        left_out: Those of the file that the module has no part for and can do without.
        num_backbone: Those of an official backbone, where the module has one of its own weights.
    """

    num_loaded: int
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    num_backbone: int


def initialise(module: nn.Module, init: Path) -> Initialised:
    """Loads weights into a module.

    Args:
        module: A segmenter.
        init: A checkpoint's folder, or a ``.safetensors`` file with our names or official ones.

    Raises:
        ConfigError: there is no such file, or it is a pickle.
        WeightsError: it is damaged, or of another architecture; the first differences are named.
    """
    path = init / MODEL if init.is_dir() else init
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"init='{init}' is no .safetensors file and no checkpoint's folder.",
            run=f"fcache weights import '{init}' -o '{init.stem}.safetensors'",
        )
    found = read_tensors(path)
    state = module.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems: list[str] = []
    num_backbone = 0
    if any(SEGMENTER_KEYS.ours(name) for name in found):
        imported = import_official(found, expected)
        num_backbone = len(imported.backbone)
        named = {SEGMENTER_KEYS.ours(name): tensor for name, tensor in found.items()}
        found = imported.tensors | {one.name: named[one.name] for one in imported.reshaped}
        problems += [
            f"holds '{name}', which has no place here"
            for name in imported.extra
            if name not in CLASS_WEIGHTS and not _is_optional(SEGMENTER_KEYS.ours(name) or name)
        ]
        left_out = [name for name in map(SEGMENTER_KEYS.ours, imported.extra) if name]
    else:
        left_out = sorted(found.keys() - expected.keys() - CLASS_WEIGHTS)
        problems += [
            f"holds '{name}', which has no place here"
            for name in left_out
            if not _is_optional(name)
        ]
    # A trained backbone starts from its own weights, unless a run that trained it is given.
    is_told = any(name.startswith(BACKBONE) for name in found)
    own = {n for n in expected if n.startswith(BACKBONE) and not is_told}
    num_backbone = num_backbone if own else 0
    problems += [f"lacks '{n}'" for n in expected if n not in found and n not in own]
    reshaped = [n for n, shape in expected.items() if n in found and found[n].shape != shape]
    fresh = [name for name in reshaped if name.startswith(CATEGORY_PARTS)]
    problems += [
        f"has '{name}' as {list(found[name].shape)}, expected {list(expected[name])}"
        for name in reshaped
        if name not in fresh
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"init='{init}' is of another architecture: it {'; it '.join(problems[:3])}{more}."
        )
    loaded = {name: found[name] for name in expected if name not in own.union(fresh)}
    module.load_state_dict(state | loaded)
    optional = tuple(filter(_is_optional, left_out))
    return Initialised(len(loaded), tuple(fresh), optional, num_backbone)


def _is_optional(name: str) -> bool:
    return name.startswith(OPTIONAL_PARTS)
