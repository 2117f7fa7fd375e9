"""The command line `pdv`: its commands, and how errors leave it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from engines.errors import InputError
from experiments.commands.bench import bench
from experiments.commands.calibrate import calibrate
from experiments.commands.compare import compare
from experiments.commands.demo import demo
from experiments.commands.figures import figures
from experiments.commands.run import run
from experiments.commands.simulate import simulate
from experiments.commands.sweep import sweep
from experiments.commands.trace import trace
from experiments.processes import TERMINATED, TerminatedError, WorkerLostError, terminable

INTERRUPTED = 130

app = typer.Typer(
    name="pdv",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Lay out speculative decoding: serve live, calibrate, simulate, compare, draw.

    The usual order: [bold]run[/bold] an architecture live, [bold]calibrate[/bold] the device, [bold]simulate[/bold]
    the same workload, [bold]compare[/bold] the two, draw [bold]figures[/bold]. [bold]demo[/bold] does all of it.
    [bold]bench[/bold] checks that outputs are exact and sets engines beside what users would run instead.
    Times are seconds, lengths tokens, rates requests per second, unless an option says otherwise.
    """,
)
for command in (run, calibrate, simulate, compare, figures, trace, sweep, bench, demo):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 where a comparison exceeds its tolerance, a file cannot be written or a
    worker was killed; 2 for bad input, with one line on standard error; 130 after Ctrl-C and 143 after SIGTERM."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with terminable():
            code = app(given or ["--help"], prog_name="pdv", standalone_mode=False)
    except InputError as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except TerminatedError:
        return _fail("terminated", TERMINATED)
    except WorkerLostError as error:
        return _fail(str(error), 1)
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", 1)
    except Exception as error:
        message = getattr(error, "format_message", None)  # of a wrong usage, such as an unknown option
        if message is None:
            raise
        return _fail(f"{message()} (see pdv --help)", 2)
    if code == INTERRUPTED:
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"pdv: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
