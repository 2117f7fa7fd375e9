"""Compile the scheduler and the simulator with mypyc, which needs a C compiler: python -m experiments.program.compile

The result is the same, to the last bit. engines/compiled.py uses the build as long as the sources do not change.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from engines.compiled import BUILDS, MODULES, ROOT, build_folder


def build() -> Path:
    """Compile, unless there is a build of these sources, and return its folder.

    Builds of other sources stay, since processes may still use them; `make clean` removes them.
    Raises SystemExit if mypyc or the C compiler fails.
    """
    from mypyc.build import mypycify  # of the extra `dev`, as setuptools
    from setuptools import Distribution  # type: ignore[import-untyped]

    folder = build_folder()
    if folder.is_dir():
        return folder
    sources = [f"{name.replace('.', '/')}.py" for name in MODULES]
    BUILDS.mkdir(parents=True, exist_ok=True)
    os.environ["CFLAGS"] = f"{os.environ.get('CFLAGS', '')} -ffp-contract=off"  # rounds as Python does everywhere
    with tempfile.TemporaryDirectory(dir=BUILDS) as made:
        os.chdir(ROOT)  # mypy names modules, and finds its settings, from here
        extensions = mypycify(sources, opt_level="3", debug_level="0", group_name="pdv", target_dir=f"{made}/c")
        distribution = Distribution({"name": "pdv", "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = f"{made}/lib", f"{made}/objects"  # type: ignore[attr-defined]
        command.ensure_finalized()
        command.run()
        os.rename(f"{made}/lib", folder)
    return folder


if __name__ == "__main__":
    print(build().relative_to(ROOT))
    sys.exit(0)
