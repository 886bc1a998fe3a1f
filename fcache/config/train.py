"""The settings of train stages: what ``fcache train`` can be told by ``key=value``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fcache.config.settings import Settings
from fcache.config.sizes import Crop
from fcache.config.stages import ExtractConfig

CROP_MULTIPLE = 32  # pixels; every level of the adapter then has whole tokens
NUM_GROUPS = 32  # of the pixel decoder's group norms

# What neither changes the trained values nor belongs to what a run is; a resumed run may change it.
FREE_KEYS = frozenset(
    {
        "about",
        "ahead",
        "device",
        "log_every",
        "num_readers",
        "save_every",
        "val_every",
        "val_frames",
        "weights",
    }
)


class BackboneTraining(Settings):
    """Whether the backbone trains too; ``[backbone]`` of a recipe."""

    trainable: bool = False  # a pyramid alone, and in the loop: source=live
    lr_factor: float = Field(default=0.1, gt=0)  # of the rate


# What a job is told, and a loop has no use for.
JOB_KEYS = (
    "split",
    "reuse",
    "mix",
    "device",
    "calibration_frames",
    "workers",
    "retries",
    "max_bytes",
)


class LiveExtract(ExtractConfig):
    """How frames become stage outputs in the loop; ``[extract]`` of a recipe.

    What ``fcache extract`` can be told. ``crops=0`` draws a crop of its own for every clip, as the
    paper does; ``crops=K`` keeps to the K draws of a video that an extraction caches.
    """

    crops: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_of_the_loop(self) -> LiveExtract:
        fields = type(self).model_fields
        for key in JOB_KEYS:
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key}= is of an extraction job; it has no meaning in the loop")
        return self


class TrainConfig(Settings):
    """What every train stage can be told."""

    kind: Literal["stage"] = "stage"
    about: str = ""
    # what is read
    source: Literal["cache", "live", "auto"] = "cache"  # live: the backbone runs in the loop
    weights: str | None = None  # of a live backbone; by default where the extraction had them
    live_rounded: bool = False  # stage outputs in the loop are rounded as the view stores its own
    extract: LiveExtract | None = None  # of videos that are trained on without a cache
    val_extract: LiveExtract | None = None  # where they are validated on otherwise
    view: str | None = None  # key prefix; needed where a cache has several views
    val_view: str | None = None  # another view of the same cache to validate on
    labels: Path | None = None  # a folder or a manifest; by default what the cache was built from
    targets: Literal["panoptic", "semantic", "auto"] = "auto"
    train_split: str = "train"
    val_split: str = "val"
    selection: dict[str, int | float | str] | None = None  # where a video has several
    num_frames: int = Field(ge=1)  # of a clip
    range_frames: int = Field(default=0, ge=0)  # how far from its reference frame others may be
    sampling: Literal["reference", "consecutive"] = "reference"
    reverse: bool = False  # consecutive clips run backwards half of the time
    crop: Crop | None = None  # a window on a full view, pixels; a view of crops needs none
    # the optimisation
    batch: int = Field(ge=1)  # clips of a step, over all ranks
    micro_batch: int | None = Field(default=None, ge=1)  # clips at once on a device
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    steps: int = Field(ge=1)
    milestones: tuple[int, ...] = ()  # steps from which the rate is multiplied by gamma
    gamma: float = Field(default=0.1, gt=0, le=1)
    clip_norm: float = Field(default=0.01, ge=0)  # of the whole gradient; 0: not clipped
    amp: Literal["none", "bfloat16", "float16"] = "none"
    checkpointing: bool = False
    seed: int = Field(default=0, ge=0)
    init: Path | None = None  # weights to start from
    # the run
    val_every: int | None = Field(default=None, ge=1)  # steps; none: after the last one alone
    val_frames: int | None = Field(default=None, ge=1)  # at most, spread evenly; none: all
    save_every: int = Field(default=1000, ge=1)
    log_every: int = Field(default=20, ge=1)
    num_readers: int = Field(default=2, ge=1)
    ahead: int = Field(default=2, ge=1)  # steps that are read before they are needed
    device: str = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        problems = [
            *self._source_problems(),
            *self._schedule_problems(),
            *self._sampling_problems(),
            *self._problems(),
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        """What else does not fit together, of a stage's own settings."""
        return []

    def _source_problems(self) -> list[str]:
        if self.source != "cache":
            return self._live_problems()
        given = {
            "weights": self.weights is not None,
            "live_rounded": self.live_rounded,
            "extract": self.extract is not None,
            "val_extract": self.val_extract is not None,
        }
        return [
            f"{key}= is of a backbone in the loop; it has no meaning with source=cache"
            for key, is_given in given.items()
            if is_given
        ]

    def _live_problems(self) -> list[str]:
        if self.extract is None:
            return []
        problems = []
        if self.selection is not None:
            problems.append("selection= is of a cache's videos; give extract.fps= and the like")
        if self.source == "auto":  # what was chosen is checked again
            return problems
        if self.weights is not None:
            problems.append("weights= is of a cache's backbone; give extract.weights=")
        if self.live_rounded and self.extract.dtype == "int8":
            problems.append(
                "live_rounded=true with extract.dtype=int8 needs channel scales, which only a "
                "cache has; expected extract.dtype=float16"
            )
        return problems

    def _schedule_problems(self) -> list[str]:
        problems = []
        if list(self.milestones) != sorted(set(self.milestones)):
            problems.append(f"milestones={_told(self.milestones)} is not ascending")
        late = [step for step in self.milestones if not 1 <= step < self.steps]
        if late:
            problems.append(
                f"milestone {late[0]} is outside the {self.steps} steps; expected 1 to "
                f"{self.steps - 1}"
            )
        if self.micro_batch is not None and self.batch % self.micro_batch:
            problems.append(f"batch={self.batch} is no multiple of micro_batch={self.micro_batch}")
        return problems

    def _sampling_problems(self) -> list[str]:
        problems = []
        for side in dict.fromkeys(self.crop or ()):
            if side < 1 or side % CROP_MULTIPLE:
                below = side - side % CROP_MULTIPLE
                near = [str(n) for n in (below, below + CROP_MULTIPLE) if n > 0]
                problems.append(
                    f"crop: {side} is not a multiple of {CROP_MULTIPLE}; nearest: {', '.join(near)}"
                )
        if self.reverse and self.sampling != "consecutive":
            problems.append("reverse=true has no meaning without sampling=consecutive")
        if self.sampling == "reference" and self.num_frames > 1 and not self.range_frames:
            problems.append(
                f"num_frames={self.num_frames} frames around a reference need range_frames=; "
                f"for example range_frames=2"
            )
        if self.val_view is not None and self.val_view == self.view:
            problems.append(f"val_view={self.val_view} is view= itself; leave it out")
        return problems


class SegmenterConfig(TrainConfig):
    """Everything ``fcache train stage=segmenter`` can be told by ``key=value``."""

    stage: Literal["segmenter"] = "segmenter"
    # the model
    adapter: Literal["vit", "comer", "none"]  # none: a pyramid backbone's outputs as they are
    prior_width: int = Field(default=64, ge=1)  # channels of the spatial prior's stem
    mrfp_ratio: float = Field(default=1.0, gt=0)  # of adapter=comer
    mrfp_residual: bool = False  # of adapter=comer
    dim: int = Field(default=256, ge=NUM_GROUPS)
    num_encoder_layers: int = Field(default=6, ge=1)
    encoder_ffn_dim: int = Field(default=1024, ge=1)
    num_queries: int = Field(ge=1)
    num_layers: int = Field(default=9, ge=1)
    ffn_dim: int = Field(default=2048, ge=1)
    num_points: int = Field(default=12544, ge=1)  # of a mask, in matching and in losses
    adapter_lr_factor: float = Field(default=0.1, gt=0)  # of the rate, for the whole adapter
    backbone: BackboneTraining = BackboneTraining()

    def _problems(self) -> list[str]:
        problems = self._backbone_problems()
        if self.dim % NUM_GROUPS:
            below = self.dim - self.dim % NUM_GROUPS
            problems.append(
                f"dim={self.dim} is not a multiple of {NUM_GROUPS}; nearest: {below}, "
                f"{below + NUM_GROUPS}"
            )
        defaults = type(self).model_fields
        problems += [
            f"{key}= is a setting of adapter=comer"
            for key in ("mrfp_ratio", "mrfp_residual")
            if self.adapter != "comer" and getattr(self, key) != defaults[key].default
        ]
        if self.adapter == "none" and self.checkpointing:
            problems.append(
                "checkpointing=true recomputes the extractors, which adapter=none has not"
            )
        return problems

    def _backbone_problems(self) -> list[str]:
        usual = BackboneTraining()
        if not self.backbone.trainable:
            changed = self.backbone.lr_factor != usual.lr_factor
            return ["backbone.lr_factor= has no meaning without backbone.trainable=true"] * changed
        problems = []
        if self.source != "live":
            problems.append(
                "backbone.trainable=true trains the backbone in the loop, and "
                f"source={self.source} may read what it gave before; expected source=live"
            )
        if self.adapter != "none":
            problems.append(
                f"adapter={self.adapter} is of plain ViTs, which stay frozen; "
                "backbone.trainable=true expects a pyramid backbone and adapter=none"
            )
        if self.live_rounded:
            problems.append("live_rounded=true would round away gradients of a trained backbone")
        return problems


def _told(values: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, values))}]"
