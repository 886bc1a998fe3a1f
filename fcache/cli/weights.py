"""``fcache weights``: official checkpoints brought in under our names, and taken out again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcache.cli.output import emit_json, emit_lines, human_bytes
from fcache.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fcache.cli.official_file import OfficialFile
    from fcache.models.official import Imported
    from fcache.models.outline import Outline

app = typer.Typer(help="Import and export official checkpoints.", no_args_is_help=True)

MAX_SHOWN = 20

Source = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="What to write.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would be written; write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def weights() -> None:
    """Import and export official checkpoints."""


@app.command("import")
def import_(
    source: Source,
    output: Output,
    backbone: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the frozen ViT in it too, for 'fcache extract weights=FILE'.",
        ),
    ] = None,
    drop_extra: Annotated[
        bool, typer.Option("--drop-extra", help="Leave out tensors that have no place in ours.")
    ] = False,
    force: Force = False,
    plan: Plan = False,
    as_json: AsJson = False,
) -> None:
    """Write the segmenter of an official checkpoint (.pth, .pkl, .safetensors) under our names."""
    from fcache.cli.official_file import open_official, vit_names
    from fcache.cli.weights_file import unshared, write_weights
    from fcache.models.official import import_official, segmenter_names
    from fcache.models.outline import outline_of

    for path in [output, *([backbone] if backbone else [])]:
        _check_output(path, source, (".safetensors",), force=force or plan)
    if backbone is not None and backbone.absolute() == output.absolute():
        raise ConfigError(f"-o and --backbone are both '{output}'; expected two files.")
    official = open_official(source)
    names = segmenter_names(official.names)
    outline = outline_of({ours: official.shape(name) for ours, name in names.items()})
    found = import_official(official.empty(), outline.shapes())
    vit = vit_names(found, source) if backbone else {}
    made_from = {"name": source.name, "sha256": _sha256(source)}
    facts = _import_facts(found, outline, official) | {"source": made_from}
    reason = _refusal(facts, drop_extra=drop_extra)
    written = not (plan or reason)
    if written:
        tensors = unshared({ours: official.read(names[ours]) for ours in found.tensors})
        about = json.dumps({"kind": "segmenter", "source": made_from, "outline": asdict(outline)})
        if backbone:
            ours = {"kind": "backbone", "source": made_from}
            values = {name: official.read(whole) for name, whole in vit.items()}
            write_weights(backbone, values, {"fcache": json.dumps(ours)})
        facts["bytes"] = write_weights(output, tensors, {"fcache": about})
    facts |= {
        "written": written,
        "output": str(output),
        "backbone_output": str(backbone) if backbone else None,
    }
    if as_json:
        emit_json("weights.import", facts)
    else:
        _print_import(facts)
    if reason:
        raise WeightsError(f"'{source}' {reason} Nothing was written.")


@app.command("export")
def export(
    source: Source,
    output: Output,
    others: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An official checkpoint whose backbone, tracker and refiner go along.",
        ),
    ] = None,
    force: Force = False,
    plan: Plan = False,
    as_json: AsJson = False,
) -> None:
    """Write a segmenter of ours (a file, or a checkpoint's folder) under official names."""
    from fcache.backbones.checkpoint import open_checkpoint
    from fcache.cli.official_file import HEAD, open_official, shown
    from fcache.cli.weights_file import write_weights
    from fcache.models.official import SEGMENTER_KEYS, export_official
    from fcache.train.checkpoint import MODEL

    path = source / MODEL if source.is_dir() else source
    _check_output(output, path, (".safetensors", ".pth"), force=force or plan)
    opened = open_checkpoint(path, exact=True, key="")
    if any(HEAD in name for name in opened.shapes):
        raise WeightsError(f"'{path}' has official names already; nothing is left to export.")
    if not any(SEGMENTER_KEYS.official(name) for name in opened.shapes):
        raise WeightsError(
            f"'{path}' holds no segmenter of fcache's {shown(opened.shapes)}; expected what "
            f"'fcache weights import' or 'fcache train stage=segmenter' wrote."
        )
    along: dict[str, Tensor] = {}
    if others:
        official = open_official(others)
        along = {name: official.read(name) for name in official.other_names()}
    exported = export_official({name: opened.read(name) for name in opened.shapes}, [along])
    facts: dict[str, Any] = {
        "written": not plan,
        "output": str(output),
        "tensors": len(opened.shapes),
        "others": len(along),
    }
    if not plan:
        facts["bytes"] = write_weights(output, exported, {})
    if as_json:
        emit_json("weights.export", facts)
        return
    print(f"{_headline(facts)}: {len(exported)} tensors under official names")
    if along:
        print(f"of these from '{others}': {len(along)}")


def _import_facts(found: Imported, outline: Outline, official: OfficialFile) -> dict[str, Any]:
    from fcache.models.official import SEGMENTER_KEYS

    def told(ours: str) -> str:
        return SEGMENTER_KEYS.official(ours) or ours

    return {
        "tensors": len(found.tensors),
        "outline": asdict(outline),
        "missing": sorted(told(name) for name in found.missing),
        "extra": list(found.extra),
        "reshaped": [
            {"name": told(one.name), "found": list(one.found), "expected": list(one.expected)}
            for one in found.reshaped
        ],
        "backbone": len(found.backbone),
        "tracker": len(found.tracker),
        "refiner": len(found.refiner),
        "outside": len(official.opened.shapes) - len(official.names),
    }


def _refusal(facts: Mapping[str, Any], *, drop_extra: bool) -> str:
    reshaped = [one["name"] for one in facts["reshaped"]]
    problems = [
        f"{len(names)} {what} (first: '{names[0]}')"
        for names, what in (
            (facts["missing"], "missing"),
            (reshaped, "of another shape"),
            ([] if drop_extra else facts["extra"], "that have no place in ours"),
        )
        if names
    ]
    if not problems:
        return ""
    hint = "" if facts["missing"] or reshaped else "; --drop-extra leaves them out"
    return f"is of another architecture: {'; '.join(problems)}{hint}."


def _print_import(facts: Mapping[str, Any]) -> None:
    outline = facts["outline"]
    print(_headline(facts))
    adapter = "none: a pyramid backbone's channels are " + ", ".join(map(str, outline["channels"]))
    if outline["adapter"] == "vit":
        adapter = f"vit: {outline['channels'][0]} channels, {outline['num_heads']} heads"
    layers = (outline["num_encoder_layers"], outline["num_layers"])
    emit_lines(
        [
            ("tensors", f"{facts['tensors']}"),
            ("adapter", adapter),
            ("decoders", f"{layers[0]} and {layers[1]} layers, {outline['dim']} channels"),
            ("queries", f"{outline['num_queries']}"),
            ("categories", f"{outline['num_categories']}"),
            ("reid head", "yes" if outline["reid"] else "no"),
            ("made from", f"{facts['source']['name']}, sha256 {facts['source']['sha256'][:16]}"),
            ("backbone", _left(facts["backbone"], facts["backbone_output"])),
            ("tracker", _left(facts["tracker"], None)),
            ("refiner", _left(facts["refiner"], None)),
            ("outside", f"{facts['outside']} tensors beside the model, such as an optimizer's"),
        ]
    )  # fmt: skip
    for key in ("missing", "extra", "reshaped"):
        _print_list(key, facts[key])


def _headline(facts: Mapping[str, Any]) -> str:
    if not facts["written"]:
        return f"not written: {facts['output']}"
    return f"wrote {facts['output']} ({human_bytes(facts['bytes'])})"


def _left(count: int, where: str | None) -> str:
    if not count:
        return "none"
    return f"{count} of its tensors, {where or 'left where they are'}"


def _print_list(title: str, entries: list[Any]) -> None:
    print(f"{title}: {len(entries)}")
    for entry in entries[:MAX_SHOWN]:
        if isinstance(entry, dict):
            print(f"  {entry['name']}: {entry['found']} instead of {entry['expected']}")
        else:
            print(f"  {entry}")
    if len(entries) > MAX_SHOWN:
        print(f"  and {len(entries) - MAX_SHOWN} more")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_output(path: Path, source: Path, suffixes: tuple[str, ...], *, force: bool) -> None:
    if path.suffix not in suffixes:
        raise ConfigError(f"'{path}' has the suffix '{path.suffix}'; expected {suffixes[0]}.")
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder; expected a file to write.")
    if path.exists() and source.exists() and path.samefile(source):
        raise ConfigError(f"'{path}' is the file that is read; expected another to write.")
    if path.exists() and not force:
        raise ConfigError(f"'{path}' exists; pass --force to replace it, or another file.")
