"""The ``fcache`` command: its groups, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import fcache
from fcache.cli import data, extract, inspect, probe, recipes
from fcache.errors import FcacheError, InterruptedJobError


class _Commands(TyperGroup):
    """The group of all commands; typer would turn Ctrl-C into exit code 1."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own types are private
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedJobError(
                "interrupted; what is committed is kept. The same command goes on from there."
            ) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Cache a frozen backbone's stage outputs once, then train from the cache.",
    epilog="Settings are given as key=value. Exit codes: 0 ok, 1 failed, 2 usage, 3 finished "
    "with quarantined videos, 4 corruption, 5 stale or incompatible cache, 6 no space, "
    "10 no such cache, 11 locked, 130 interrupted (safe to run again).",
)
app.command("extract")(extract.extract)
app.command("ls")(inspect.ls)
app.command("info")(inspect.info)
app.command("verify")(inspect.verify)
app.command("why")(extract.why)
app.command("probe")(probe.probe)
app.command("recipes")(recipes.recipes)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fcache {fcache.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    global _debug
    _debug = debug


_debug = False


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        app()
    except FcacheError as error:
        if _debug:
            traceback.print_exc()
        print(f"fcache: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe has gone, for example `fcache ls C | head`: nothing is wrong.
        sys.stderr.close()
        sys.exit(0)
