"""What ``fcache eval`` prints: tables for people, one JSON object for programs."""

from __future__ import annotations

import math
from typing import Any

from fcache.cli.eval_report import SUFFIXES, Report, ranked
from fcache.cli.output import emit_json, emit_lines, emit_table
from fcache.eval.quirks import TEXTS
from fcache.manifest import Board

TITLES = {"stability": "VPQ_1 - VPQ_6"}
UNDEFINED = "-"


def print_json(
    command: str,
    report: Report,
    facts: dict[str, Any],
    board: Board | None,
    *,
    per_class: bool,
) -> None:
    """Prints one JSON object; a score that is undefined is null, with its reason beside."""
    content: dict[str, Any] = {
        **facts,
        "scores": report.scores,
        "undefined": report.undefined,
        "quirks": [
            {
                "metric": quirk.metric,
                "name": quirk.name,
                "text": TEXTS[quirk.name],
                "value": quirk.value,
                "without": quirk.without,
                "num_places": quirk.num_places,
                "first": quirk.first,
            }
            for quirk in report.quirks
        ],
        **{f"num_{name}": count for name, count in report.counts.items()},
    }
    if per_class:
        content["classes"] = report.classes
    if board is not None:
        _, rows = ranked(board, report.scores, facts["definition"])
        content["against"] = {"board": board.name, "data": board.data, "rows": rows}
    emit_json(command, _nulls(content))


def print_tables(
    report: Report, facts: dict[str, Any], board: Board | None, *, per_class: bool
) -> None:
    """Prints the scores, why some are undefined, the quirks behind them, and what was scored."""
    if report.grouped:
        emit_table(
            ("", *(group.upper() for group in SUFFIXES)),
            [
                (name, *(_number(report.scores[f"{name}{suffix}"]) for suffix in SUFFIXES.values()))
                for name in report.grouped
            ],
        )
    shown = {f"{name}{suffix}" for name in report.grouped for suffix in SUFFIXES.values()}
    emit_lines(
        [
            (TITLES.get(name, name), _number(value))
            for name, value in report.scores.items()
            if name not in shown
        ]
    )
    if per_class and report.classes:
        names = list(report.classes[0])
        rows = [tuple(_cell(row[name]) for name in names) for row in report.classes]
        emit_table(tuple(name.upper() for name in names), rows)
    if board is not None:
        _print_board(board, report, facts["definition"])
    for name, why in report.undefined.items():
        print(f"{name} is undefined: {why}")
    if report.quirks:
        print("the published scripts differ from the definition here (--clean follows it):")
        for quirk in report.quirks:
            print(f"  {quirk.text}")
    counts = ", ".join(
        f"{count:,} {name if count != 1 else name.removesuffix('s')}"
        for name, count in report.counts.items()
    )
    print(f"{counts}, {facts['seconds']:.1f} s, {facts['definition']} definition")


def _print_board(board: Board, report: Report, definition: str) -> None:
    metrics, rows = ranked(board, report.scores, definition)
    print(f"{board.name}: {board.data}")
    emit_table(
        ("METHOD", *metrics, "SPLIT", "SOURCE"),
        [
            (
                f"> {row['method']}" if row["ours"] else row["method"],
                *(_published(row["scores"].get(name, math.nan)) for name in metrics),
                row["split"],
                row["source"],
            )
            for row in rows
        ],
    )


def _number(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.4f}"


def _published(value: float) -> str:
    """As few digits as the source prints."""
    return UNDEFINED if math.isnan(value) else f"{value:.6g}"


def _cell(value: str | int | float) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _nulls(content: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replaces NaN, which JSON does not have, by null."""
    if isinstance(content, dict):
        return {key: _nulls(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_nulls(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
