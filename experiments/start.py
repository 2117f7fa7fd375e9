"""The entry point of `pdv`. An interrupt is reported in one line from the start, also while modules are imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `pdv` with the arguments of the command line, and return its exit code."""
    try:
        from experiments.cli import main as run
    except KeyboardInterrupt:
        print("pdv: interrupted", file=sys.stderr)
        return 130
    return run()
