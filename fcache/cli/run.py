"""``fcache run``."""

from __future__ import annotations

import itertools
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcache.cli.output import emit_json, emit_table
from fcache.cli.relay import Relay
from fcache.errors import ConfigError, FcacheError, InterruptedJobError, nearest

if TYPE_CHECKING:
    from fcache.cli.chain_notes import Notes
    from fcache.config.chain import ChainCommand

QUARANTINED = 3  # the exit code of a command that left broken videos out


def run(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A chain's name, or its file.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=PATH]... [STEP.KEY=VALUE]...", help="Its inputs, and steps' settings."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where all of it goes; default: runs/RECIPE.")
    ] = None,
    again: Annotated[
        str | None, typer.Option("--again", metavar="STEP", help="Run from this step on.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop where videos were quarantined.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the chains.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run several commands one after another, as a chain recipe says.

    Resumes: run the same command again. A step that has ended is skipped until one before it runs
    again, its words or a file they name change, or what it made is gone. Videos added to a folder
    are seen with --again STEP.
    """
    from fcache.cli.chain_notes import Notes
    from fcache.config import read_overrides
    from fcache.config.chain import chain_commands, load_chain

    if show:
        _list(as_json=as_json)
        return
    if recipe is None:
        raise ConfigError("no recipe is given; expected a chain's name.", run="fcache run --list")
    chain = load_chain(recipe)
    folder = out or Path("runs") / Path(recipe).stem
    commands = chain_commands(chain, read_overrides(words or []), folder)
    _check_settings(commands)
    names = [command.name for command in commands]
    if again is not None and again not in names:
        raise ConfigError(
            f"--again {again} is no step{nearest(again, names)}; expected one of: "
            f"{', '.join(names)}."
        )
    notes = Notes.read(folder)
    begin = notes.first_to_run(commands, again)
    if plan:
        _show_plan(commands, begin, as_json=as_json)
        return
    results = _run_all(commands, begin, notes, strict=strict, as_json=as_json)
    if as_json:
        emit_json("run", {"out": str(folder), "steps": results})


def _check_settings(commands: Sequence[ChainCommand]) -> None:
    """Refuses wrong settings of any step before the first one runs.

    Raises:
        ConfigError: all of them.
    """
    from fcache.config import ExtractConfig, PredictConfig, ProbeConfig, load_recipe, resolve
    from fcache.train.recipe import read_config

    problems = []
    for command in commands:
        settings = dict(command.settings)
        try:
            if command.command == "train":
                pairs = dict(itertools.pairwise(command.words))
                recipe = settings.pop("recipe", "segmenter_vipseg")
                read_config(recipe, settings, videos=pairs.get("--videos"))
            elif command.command in {"extract", "probe"}:
                kind = ExtractConfig if command.command == "extract" else ProbeConfig
                table = load_recipe(settings.pop("recipe", command.command))
                for name in ("manifest", "root"):
                    settings.pop(name, None)
                resolve(kind, table, settings)
            elif command.command == "predict":
                # Lists of names are divided by the command; extract.* are its own view's.
                told = {k: v for k, v in settings.items() if k not in {"heads", "videos"}}
                own = {k: v for k, v in told.items() if not k.startswith("extract.")}
                resolve(PredictConfig, {}, own)
        except ConfigError as error:
            problems.append(f"step '{command.name}': {error.message}")
    if problems:
        raise ConfigError("\n".join(problems))


def _run_all(
    commands: Sequence[ChainCommand],
    begin: int,
    notes: Notes,
    *,
    strict: bool,
    as_json: bool,
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for command in commands[:begin]:
        _say(f"# {command.name}: has ended")
        results.append({"name": command.name, "state": "ended before"})
    notes.forget(commands[begin:])
    for command in commands[begin:]:
        line = shlex.join(["fcache", *command.argv])
        _say(f"$ {line}")
        code, printed = _execute(command.argv, as_json=as_json)
        if code not in (0, QUARANTINED) or (code == QUARANTINED and strict):
            raise StepFailedError(
                f"step '{command.name}' ended with exit code {code}; the same command goes on "
                "from there.",
                run=line,
                code=code,
            )
        notes.note(command)
        results.append({"name": command.name, "state": "ended", "exit_code": code, **printed})
    return results


class StepFailedError(FcacheError):
    """A step failed; the chain ends with its exit code."""

    def __init__(self, message: str, *, run: str, code: int) -> None:
        super().__init__(message, run=run)
        self.exit_code = code


def _execute(argv: Sequence[str], *, as_json: bool) -> tuple[int, dict[str, Any]]:
    """Runs a command; what ends this process is passed on to it, and it ends its own work first.

    Returns:
        Its exit code, and with ``as_json`` what it printed.

    Raises:
        InterruptedJobError: Ctrl-C.
    """
    words = [sys.executable, "-m", "fcache", *argv, *(["--json"] if as_json else [])]
    with Relay() as relay:
        # In a group of its own: a terminal's Ctrl-C reaches it once, from here.
        child = subprocess.Popen(
            words, stdout=subprocess.PIPE if as_json else None, process_group=0, text=True
        )
        relay.begin(child)
        printed, _ = child.communicate()
    if signal.SIGINT in relay.asked:
        raise InterruptedJobError("interrupted; the same command goes on from there.")
    if relay.asked:
        signal.raise_signal(relay.asked[-1])
    if not as_json or child.returncode not in (0, QUARANTINED):
        return child.returncode, {}
    return child.returncode, {"result": json.loads(printed)}


def _show_plan(commands: Sequence[ChainCommand], begin: int, *, as_json: bool) -> None:
    states = ["ended" if place < begin else "to run" for place in range(len(commands))]
    if as_json:
        steps = [
            {"name": command.name, "state": state, "command": ["fcache", *command.argv]}
            for command, state in zip(commands, states, strict=True)
        ]
        emit_json("run.plan", {"steps": steps})
        return
    lines = [shlex.join(["fcache", *command.argv]) for command in commands]
    rows = zip([command.name for command in commands], states, lines, strict=True)
    emit_table(("STEP", "STATE", "COMMAND"), list(rows))
    print("nothing was run. Remove --plan to start.")


def _list(*, as_json: bool) -> None:
    from fcache.config import load_recipe, recipe_names
    from fcache.config.chain import Chain, load_chain

    chains: dict[str, Chain] = {
        name: load_chain(name)
        for name in recipe_names()
        if load_recipe(name).get("kind") == "chain"
    }
    if as_json:
        emit_json("run.list", {"chains": {n: chain.model_dump() for n, chain in chains.items()}})
        return
    rows = [
        (name, ", ".join(step.name for step in chain.steps), chain.about)
        for name, chain in chains.items()
    ]
    emit_table(("CHAIN", "STEPS", "ABOUT"), rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
