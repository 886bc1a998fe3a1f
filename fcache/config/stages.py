"""The settings of each stage: what ``fcache extract`` and ``fcache probe`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from fcache.config.settings import Settings
from fcache.config.sizes import Crop, ShortSide, Size
from fcache.config.view import Selection, ViewGeometry

StoredDtype = Literal["float16", "bfloat16", "float32", "int8"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]
PositionRule = Literal["dinov2", "dinov2_reg", "timm"]


class BackboneSettings(Settings):
    """Which frozen network runs, on which weights, in which arithmetic.

    ``weights`` is ``hub``, ``random:SEED``, or a path to ``.pth``, ``.pt``, ``.bin``, ``.pkl`` or
    ``.safetensors``. ``blocks`` overrides the default of the last block of each quarter of a
    plain ViT. ``pos`` defaults to the rule the model was trained with.
    """

    model: str
    weights: str = "hub"
    blocks: tuple[int, int, int, int] | None = None
    pos: PositionRule | None = None
    patch: Literal[14, 16] = 16
    compute_dtype: ComputeDtype = "float32"


class ExtractConfig(Settings):
    """Everything ``fcache extract`` can be told by ``key=value``."""

    replaces: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "size": ("short_side", "long_side_max", "crop", "crop_seed", "crops"),
        "short_side": ("size",),
        "crop": ("size", "flip"),
        "fps": ("stride",),
        "stride": ("fps",),
    }
    dependents: ClassVar[Mapping[str, tuple[str, ...]]] = {"crop": ("crop_seed", "crops")}

    kind: Literal["stage"] = "stage"
    stage: Literal["extract"] = "extract"
    about: str = ""
    # what runs
    model: str
    weights: str = "hub"
    blocks: tuple[int, int, int, int] | None = None
    pos: PositionRule | None = None
    compute_dtype: ComputeDtype = "float32"
    dtype: StoredDtype = "float16"
    # the view
    patch: Literal[14, 16] = 16
    short_side: ShortSide | None = None
    long_side_max: int | None = None
    size: Size | None = None
    flip: bool = False
    crop: Crop | None = None
    crop_seed: int = 0
    crops: int = Field(default=1, ge=1)  # draws per video, 0 to crops - 1; not in the identity
    # which frames
    fps: float | None = None
    stride: int = 1
    start: float = 0.0
    end: float | None = None
    max_frames: int | None = None
    on_error: Literal["quarantine", "keep_prefix"] = "quarantine"
    split: str | None = None
    reuse: Literal["content", "name"] = "content"  # what makes a cached frame of a folder the same
    # the job
    batch: Literal[1, 2, 4, 8, 16] = 1
    mix: bool = False  # images of different sizes in one batch; last bits then depend on neighbours
    device: str = "auto"
    calibration_frames: int = Field(default=500, ge=1)  # at most; of int8
    workers: int = Field(default=0, ge=0)  # 0: one per GPU, or one on a CPU
    retries: int = Field(default=2, ge=0)
    max_bytes: int | None = Field(default=None, ge=1)
    compile: bool = False

    @model_validator(mode="after")
    def _parts_are_valid(self) -> ExtractConfig:
        _ = (self.selection, self.geometry, self.backbone)
        if self.crop is None and self.crops != type(self).model_fields["crops"].default:
            raise ValueError(f"crops={self.crops} has no meaning without crop=")
        if self.mix and self.batch == 1:
            raise ValueError("mix=true has no meaning with batch=1; give batch=8, for example")
        if self.mix and self.compile:
            raise ValueError("mix=true runs no compiled blocks; give compile=true or mix=true")
        return self

    @property
    def selection(self) -> Selection:
        """The frame selection, as it enters an item's identity."""
        return Selection(**self._take(Selection))

    @property
    def geometry(self) -> ViewGeometry:
        """The view, as it enters a view's identity."""
        return ViewGeometry(**self._take(ViewGeometry))

    @property
    def backbone(self) -> BackboneSettings:
        """The backbone settings a worker needs."""
        return BackboneSettings(**self._take(BackboneSettings))

    def _take(self, kind: type[BaseModel]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in kind.model_fields}


class ProbeConfig(Settings):
    """Everything ``fcache probe`` can be told by ``key=value``; see ``pipelines/probe.toml``."""

    kind: Literal["stage"] = "stage"
    stage: Literal["probe"] = "probe"
    about: str = ""
    labels: Path | None = None
    selection: dict[str, int | float | str] | None = None  # where a video has several
    train_split: str = "train"
    val_split: str = "val"
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    stride: int = Field(ge=1, le=128)  # pixels a logit covers, each way
    memory_bytes: int = Field(default=3 << 29, ge=1)  # of training features held; more are sampled
    seed: int = 0
