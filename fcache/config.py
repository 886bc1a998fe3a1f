"""Recipes, ``key=value`` overrides, and the settings of each command.

A recipe is a TOML file in ``pipelines/`` (or the user's own): the numbers. The command line
overrides it, key by key, from left to right; nothing else does. Every wrong key and value is
collected and shown together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from fcache.errors import ConfigError, nearest

StoredDtype = Literal["float16", "bfloat16", "float32", "int8"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]
PositionRule = Literal["dinov2", "dinov2_reg", "timm"]


class Settings(BaseModel):
    """Base of every settings class: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # An override of the key drops the recipe's values of the keys it stands in for...
    replaces: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # ...and key=none drops those that mean nothing without it.
    dependents: ClassVar[Mapping[str, tuple[str, ...]]] = {}


def _parse_size(value: object) -> object:
    """Reads ``480x864`` (height x width, pixels)."""
    if isinstance(value, str):
        height, cross, width = value.lower().partition("x")
        if not (cross and height.strip().isdecimal() and width.strip().isdecimal()):
            raise ValueError(f"'{value}' is not HEIGHTxWIDTH, for example 480x864")
        return (int(height), int(width))
    return value


def _parse_crop(value: object) -> object:
    """Reads ``604`` (a square) or ``630x1120`` (height x width), pixels."""
    if isinstance(value, str) and not value.strip().isdecimal():
        try:
            return _parse_size(value)
        except ValueError:
            raise ValueError(
                f"'{value}' is not SIDE or HEIGHTxWIDTH, for example 604 or 630x1120"
            ) from None
    if isinstance(value, int | str) and not isinstance(value, bool):
        return (int(value), int(value))
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_parse_size)]
Crop = Annotated[tuple[int, int], BeforeValidator(_parse_crop)]


@dataclass(frozen=True, slots=True)
class SideRange:
    """Sides from ``low`` to ``high`` pixels, both included; written ``480..1080``."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(
                f"'{self}' is not a range of sides; expected LOW..HIGH with 1 <= LOW <= HIGH, "
                "for example 480..1080"
            )

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


def _parse_side(value: object) -> int | SideRange:
    """Reads ``720`` or ``480..1080``; a range of one side is that side."""
    if isinstance(value, SideRange):
        return value if value.low < value.high else value.low
    low, dots, high = str(value).partition("..")
    if dots and low.strip().isdecimal() and high.strip().isdecimal():
        return _parse_side(SideRange(int(low), int(high)))
    if low.strip().isdecimal() and not dots and int(low) >= 1:
        return int(low)
    raise ValueError(
        f"'{value}' is not a number of pixels, or LOW..HIGH, for example 720 or 480..1080"
    )


ShortSide = Annotated[
    int | SideRange,
    PlainValidator(_parse_side),
    PlainSerializer(lambda side: side if isinstance(side, int) else str(side)),
]

PATCH_14_MULTIPLE = 28  # pixels; two patches of 14, so that every level has whole tokens


class Selection(Settings):
    """Which frames of a source are taken; part of an item's identity.

    ``fps`` takes, for k = 0, 1, 2..., the last frame whose time is <= start + k / fps, each frame
    once: the first is the one on screen at ``start``. ``stride`` takes every n-th frame from the
    first at or after ``start``. ``start`` and ``end`` are seconds from the first frame, ``end``
    exclusive.
    """

    fps: float | None = Field(default=None, gt=0)
    stride: int = Field(default=1, ge=1)
    start: float = Field(default=0.0, ge=0)
    end: float | None = Field(default=None, gt=0)
    max_frames: int | None = Field(default=None, ge=1)
    on_error: Literal["quarantine", "keep_prefix"] = "quarantine"

    @model_validator(mode="after")
    def _consistent(self) -> Selection:
        if self.fps is not None and self.stride != 1:
            raise ValueError("fps= and stride= both choose frames; give one of them")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end={self.end} is not after start={self.start} (seconds)")
        return self


class ViewGeometry(Settings):
    """How a frame becomes the padded canvas the backbone sees; part of a view's identity.

    Either the short side is resized to ``short_side`` (the long side never above
    ``long_side_max``), or the frame is resized to ``size`` = (height, width), all in pixels.
    ``patch`` 16 (the DVIS++ way; also what pyramids use) pads right and bottom to multiples of
    32; ``patch`` 14 resizes both sides to the nearest multiple of 28 and pads nothing.
    ``fcache.sources.geometry`` says what sides above 1344 are padded to.

    With ``crop`` = (height, width) it is a crop view: of the resized frame a part of at most that
    size is kept. A short side out of the range, a flip and the part's place are drawn once per
    video and draw, from ``crop_seed``.
    """

    short_side: ShortSide | None = None
    long_side_max: int | None = Field(default=None, ge=1)
    size: Size | None = None
    patch: Literal[14, 16] = 16
    flip: bool = False
    crop: Crop | None = None
    crop_seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> ViewGeometry:
        if (self.short_side is None) == (self.size is None):
            wanted = "short_side=N or size=HEIGHTxWIDTH, one of the two"
            if self.crop is not None:
                wanted = "short_side=N or short_side=LOW..HIGH with crop="
            raise ValueError(f"give {wanted}")
        if self.size is not None and self.long_side_max is not None:
            raise ValueError("long_side_max= limits short_side=; it has no meaning with size=")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={self.size[0]}x{self.size[1]} has an empty side")
        short = self.short_side
        most = short.high if isinstance(short, SideRange) else short
        if most and self.long_side_max is not None and self.long_side_max < most:
            raise ValueError(f"long_side_max={self.long_side_max} is below short_side={short}")
        self._check_crop()
        return self

    def _check_crop(self) -> None:
        if self.crop is None:
            if isinstance(self.short_side, SideRange):
                raise ValueError(
                    f"short_side={self.short_side} is a range, from which only crop= draws; "
                    f"give crop=604, or one side such as short_side={self.short_side.high}"
                )
            if self.crop_seed != 0:
                raise ValueError(f"crop_seed={self.crop_seed} has no meaning without crop=")
            return
        crop = f"crop={self.crop[0]}x{self.crop[1]}"
        if min(self.crop) < 1:
            raise ValueError(f"{crop} has an empty side")
        if self.size is not None:
            raise ValueError(
                f"{crop} is cut from a frame resized by short_side=; it has no meaning with size="
            )
        if self.flip:
            raise ValueError(f"flip=true has no meaning with {crop}: its flips are drawn")
        for side in self.crop if self.patch == 14 else ():
            if side % PATCH_14_MULTIPLE:
                below = side - side % PATCH_14_MULTIPLE
                near = [f"{n}" for n in (below, below + PATCH_14_MULTIPLE) if n]
                raise ValueError(
                    f"{crop}: {side} is not a multiple of {PATCH_14_MULTIPLE}, which patch=14 "
                    f"needs; nearest: {', '.join(near)}"
                )

    def identity(self) -> dict[str, Any]:
        """Returns the geometry as it enters a view's identity, in JSON's types.

        Full views leave out what only crop views have, so that their keys do not depend on it.
        """
        crop_only = {"crop", "crop_seed"} if self.crop is None else set()
        return self.model_dump(mode="json", exclude=crop_only)


class BackboneSettings(Settings):
    """Which frozen network runs, on which weights, in which arithmetic.

    ``weights`` is ``hub``, ``random:SEED``, or a path to ``.pth``, ``.pt``, ``.bin`` or
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

    replaces = {
        "size": ("short_side", "long_side_max", "crop", "crop_seed", "crops"),
        "short_side": ("size",),
        "crop": ("size", "flip"),
        "fps": ("stride",),
        "stride": ("fps",),
    }
    dependents = {"crop": ("crop_seed", "crops")}

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
    device: str = "auto"
    calibration_frames: int = Field(default=500, ge=1)  # at most; of int8
    workers: int = Field(default=0, ge=0)  # 0: one per GPU, or one on a CPU
    retries: int = Field(default=2, ge=0)
    max_bytes: int | None = Field(default=None, ge=1)
    compile: bool = False

    @model_validator(mode="after")
    def _parts_are_valid(self) -> ExtractConfig:
        _ = (self.selection, self.geometry, self.backbone)
        if self.crop is None and self.crops != 1:
            raise ValueError(f"crops={self.crops} has no meaning without crop=")
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


def shipped(room: Literal["pipelines", "manifests", "kernels"]) -> Path:
    """Returns the folder of a data room, in an installed wheel or in a checkout."""
    packaged = Path(str(resources.files("fcache"))) / room
    return packaged if packaged.is_dir() else packaged.parent.parent / room


def recipe_names() -> list[str]:
    """Returns the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in shipped("pipelines").glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the table in a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"'{path}' does not exist; expected a TOML file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"'{path}' is not a readable TOML file: {error}.") from None


def load_recipe(name: str) -> dict[str, Any]:
    """Returns a recipe's table, by shipped name or by path.

    Raises:
        ConfigError: no recipe of that name or path; the nearest names are offered.
    """
    path = Path(name)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return read_toml(path)
    if name not in recipe_names():
        raise ConfigError(
            f"recipe '{name}' is not shipped{nearest(name, recipe_names())}.",
            run="fcache recipes",
        )
    return read_toml(shipped("pipelines") / f"{name}.toml")


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Divides command-line words into plain words and ``key=value`` overrides.

    A word that names an existing path is a plain word even if it holds ``=``.
    """
    plain: list[str] = []
    overrides: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key.replace(".", "_").isidentifier() and not Path(word).exists():
            overrides[key] = value
        else:
            plain.append(word)
    return plain, overrides


def parse_value(text: str) -> Any:  # noqa: ANN401 - the field's declared type decides
    """Reads an override the way TOML would, and as plain text where it is not TOML."""
    if text in {"none", "None", ""}:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


SettingsT = TypeVar("SettingsT", bound=Settings)


def resolve(
    kind: type[SettingsT], recipe: Mapping[str, Any], overrides: Mapping[str, str]
) -> SettingsT:
    """Builds settings from a recipe and overrides.

    Raises:
        ConfigError: every unknown key and impossible value, together.
    """
    problems = [
        f"'{key}' is not a setting{nearest(key, kind.model_fields)}"
        for key in [*overrides, *recipe]
        if key not in kind.model_fields
    ]
    fields = kind.model_fields
    newer = {key: _as_field(kind, key, text) for key, text in overrides.items() if key in fields}
    known = layered(kind, recipe, newer)
    try:
        settings = kind.model_validate({key: known[key] for key in known if key in fields})
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return settings


def layered(
    kind: type[Settings], older: Mapping[str, Any], newer: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a table with another over it, less what the newer keys stand in for.

    A newer key that is None stands in for nothing; it takes along what depends on it.
    """
    dropped: set[str] = set()
    for key, value in newer.items():
        dropped.update((kind.dependents if value is None else kind.replaces).get(key, ()))
    return {**{key: value for key, value in older.items() if key not in dropped}, **newer}


def _as_field(kind: type[BaseModel], key: str, text: str) -> Any:  # noqa: ANN401
    """Keeps text for a field that holds text or a path; reads a value for any other."""
    annotation = str(kind.model_fields[key].annotation)
    if text in {"none", "None"}:
        return None
    textual = "str" in annotation or "Path" in annotation or "Literal['" in annotation
    if "dict[" not in annotation and (textual or "tuple[int, int]" in annotation):
        return text
    return parse_value(text)


def _explain(item: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"'{where}' is needed: give {where}=..."
    if not where:
        return message
    return f"{where}={item['input']}: {message[0].lower()}{message[1:]}"
