"""The text that the embedded pair is trained on and prompted with: Python's standard library.

Every interpreter ships with it, so neither training nor a workload downloads anything. A checksum of a file's
relative path decides whether it is held out of training, so the split is the same for every machine and Python.
"""

import random
import sysconfig
import zlib
from bisect import bisect_right
from functools import cache
from itertools import accumulate
from pathlib import Path, PurePosixPath

# Installed packages are not the standard library. The rest is generated tables or tools for Python 2 grammar.
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data", "lib2to3"})
# Linux distributions ship these separately or not at all.
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
HELD_OUT_ONE_IN = 20


def stdlib_root() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_held_out(path: str) -> bool:
    """Return whether a file is held out of training. path: relative to the library's root, with forward slashes."""
    return zlib.crc32(path.encode()) % HELD_OUT_ONE_IN == 0


def stdlib_files(root: Path | None = None, *, tests: bool = False) -> dict[str, Path]:
    """Return the library's Python files, sorted by relative path (with forward slashes, as in `is_held_out`).

    root: the library's folder, by default the running interpreter's. tests: include the library's test suites
    where they are installed. Training uses them, but prompts are never drawn from them.
    """
    root = stdlib_root() if root is None else root
    unwanted = SKIPPED_FOLDERS if tests else SKIPPED_FOLDERS | TEST_FOLDERS
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return {name: root / name for name in names if unwanted.isdisjoint(PurePosixPath(name).parts)}


def read_utf8(path: Path) -> bytes:
    """Return a file's bytes with newlines as `\\n`, or b"" if it is not UTF-8 (a few encoding tests)."""
    try:
        return path.read_bytes().decode().replace("\r\n", "\n").encode()
    except UnicodeDecodeError:
        return b""


@cache
def held_out_files(root: Path | None = None) -> dict[str, bytes]:
    """Return the contents of the held-out files by relative path, without test suites and empty files.

    Raises FileNotFoundError if the library has no readable held-out source, as in an embedded distribution that
    keeps it in a zip archive.
    """
    files = {name: read_utf8(path) for name, path in stdlib_files(root).items() if is_held_out(name)}
    files = {name: content for name, content in files.items() if content}
    if not files:
        raise FileNotFoundError(f"no held-out standard library source under {root or stdlib_root()}")
    return files


def held_out_prompt(seed: int, index: int, length: int, root: Path | None = None) -> bytes:
    """Return prompt number `index` of a workload: `length` ASCII bytes of a held-out file, from the start of a line.

    It depends only on (seed, index, length) and the library, never on the number of prompts.
    Raises ValueError if no held-out file is long enough.
    """
    files = [content for content in held_out_files(root).values() if len(content) >= length]
    if length < 1 or not files:
        raise ValueError(f"no held-out file holds a prompt of {length} bytes")
    ends = list(accumulate(len(content) for content in files))
    draw = random.Random(f"{seed}/{index}")
    while True:
        position = draw.randrange(ends[-1])
        file = bisect_right(ends, position)
        content = files[file]
        within = position - (ends[file] - len(content))
        start = content.rfind(b"\n", 0, within) + 1
        prompt = content[start : start + length]
        if len(prompt) == length and prompt.isascii():
            return prompt
