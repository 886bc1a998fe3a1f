"""The ``fcache`` command: its groups, and how errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import fcache
from fcache.cli import (
    build,
    copy,
    data,
    demo,
    doctor,
    eval as evaluation,
    extract,
    inspect,
    predict,
    probe,
    recipes,
    run,
    train,
    verify,
    weights,
)
from fcache.errors import ConfigError, FcacheError, InterruptedJobError

# typer carries a copy of click of its own; this is the class of every mistake in a command line.
_UsageError: Any = typer.BadParameter.__bases__[0]


class _Commands(TyperGroup):
    """The group of all commands; typer would turn Ctrl-C and a closed pipe into other codes."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own types are private
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedJobError(
                "interrupted; what is committed is kept. The same command goes on from there."
            ) from None
        except BrokenPipeError:
            _forget_stdout()
            return None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Cache a frozen backbone's stage outputs once, then train from the cache.",
    epilog="Settings are given as key=value. Exit codes: 0 ok, 1 failed, 2 usage, 3 finished "
    "with quarantined videos, 4 corruption, 5 stale or incompatible cache, 6 no space, "
    "10 no such cache, 130 interrupted (safe to run again).",
)
app.command("extract")(extract.extract)
app.command("ls")(inspect.ls)
app.command("info")(inspect.info)
app.command("verify")(verify.verify)
app.command("why")(extract.why)
app.command("copy")(copy.copy)
app.command("probe")(probe.probe)
app.command("train")(train.train)
app.command("predict")(predict.predict)
app.command("run")(run.run)
app.command("recipes")(recipes.recipes)
app.command("demo")(demo.demo)
app.command("build")(build.build)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(evaluation.app, name="eval")
app.add_typer(weights.app, name="weights")


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
    # Read by OpenMP when torch is imported, here and in the workers. By default a thread that waits
    # spins: on a machine with other work the network then runs ten times slower (docs/results).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except FcacheError as error:
        code = _complain(str(error), error.exit_code)
    except _UsageError as error:
        at = error.ctx.command_path if error.ctx else "fcache"
        code = ConfigError.exit_code
        if error.format_message():  # a bare `fcache` has shown its help
            _complain(f"{error.format_message()}\nNext: {at} --help", code)
    except OSError as error:
        code = _complain(f"{error}.", FcacheError.exit_code)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, code: int) -> int:
    if _debug:
        traceback.print_exc()
    print(f"fcache: {text}", file=sys.stderr)
    return code


def _forget_stdout() -> None:
    """The reader of a pipe has gone, as in ``fcache ls C | head``: nothing is wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
