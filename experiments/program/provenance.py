"""What made the results in a folder: one entry per different call, in provenance.toml."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w

from engines.errors import InputError
from engines.storage.files import replaced
from engines.storage.reading import read_toml

PROVENANCE = "provenance.toml"
LIBRARIES = ("pdv", "numpy", "scipy", "simpy", "pandas")
ROOT = Path(__file__).parents[2]


def note_call(folder: Path, command: str) -> None:
    """Add this call to the folder's provenance.toml, unless the last one differs in nothing but its date.

    Results are made by several calls if one was interrupted or if other settings followed. An unreadable file is
    begun again. Only a process that has locked the folder may call this.
    """
    call: dict[str, Any] = {
        **made_by(),
        "command": command,
        "versions": {name: installed(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }
    known = calls(folder)
    if known and {name: value for name, value in known[-1].items() if name != "date"} == call:
        return
    call["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with replaced(folder / PROVENANCE) as beside:
        beside.write_text(tomli_w.dumps({"calls": [*known, call]}), encoding="utf-8")


def installed(name: str) -> str:
    """Return the version of a distribution; "not installed" for a checkout that is run in place."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def made_by() -> dict[str, str]:
    """Return the command line of this process and, in a checkout, its commit, for the description of a result."""
    commit = git_commit()
    return {"command": this_command(), **({} if commit is None else {"commit": commit})}


def this_command() -> str:
    """Return the command line of this process, as a user types it."""
    return shlex.join(["pdv", *sys.argv[1:]])


def calls(folder: Path) -> list[dict[str, Any]]:
    """Return what note_call wrote, the earliest call first; nothing for a missing or unreadable file."""
    try:
        found = read_toml("provenance", folder / PROVENANCE).get("calls", [])
    except InputError:
        return []
    return [call for call in found if isinstance(call, dict)] if isinstance(found, list) else []


def git_commit() -> str | None:
    """Return the commit of the checkout that this code is in, with "-dirty" if files have changed; None elsewhere."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
