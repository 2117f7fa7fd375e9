"""Identify the models of a pair by their folders and by digests. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import InputError
from engines.pairs.permutation import PREFIX, PermutationSpec, parse_pair

EMBEDDED = Path(__file__).parents[1] / "live" / "embedded"
ROLES = ("target", "draft")
SAMPLE_BYTES = 1024  # read of every tensor
MOST_HEADER_BYTES = 100 << 20  # limit of safetensors itself


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    name: name of the folder or shape. digest: of the configuration and weights, the same on every machine.
    path: the resolved folder, None for a model that was built and not loaded.
    """

    name: str
    digest: str
    path: str | None = None


@dataclass(frozen=True)
class Origins:
    """The origins of a pair's two models."""

    target: Origin
    draft: Origin

    def describe(self) -> dict[str, dict[str, str]]:
        """Return names and digests, for a record or a profile. Paths are left out: they differ between machines."""
        return {role: {"name": model.name, "digest": model.digest} for role, model in self._by_role().items()}

    def key(self) -> dict[str, Any]:
        """Return everything as plain values, to tell whether something was made with the same models."""
        return asdict(self)

    def _by_role(self) -> dict[str, Origin]:
        return {"target": self.target, "draft": self.draft}


def origins_of(target: str | Path, draft: str | Path | None = None) -> Origins:
    """Return the origins of the pair that engines.live.model.pairs.load_pair would load.

    Only the middle 1,024 bytes of each tensor are read, so the digest does not change with weights outside them.
    Raises InputError for a folder without a configuration.
    """
    if str(target).startswith(PREFIX):
        return spec_origins(parse_pair(str(target)))
    within = "" if draft is not None else f"{pair_name(target)}/"
    return Origins(*(_of_folder(role, folder, within) for role, folder in model_folders(target, draft).items()))


def spec_origins(spec: PermutationSpec) -> Origins:
    """Return the origins of a permutation pair, whose digests follow from its specification."""
    digests = {role: hashlib.sha256(f"{role}: {spec!r}".encode()).hexdigest() for role in ROLES}
    return Origins(Origin(spec.target, digests["target"]), Origin(spec.draft, digests["draft"]))


def pair_name(target: str | Path, draft: str | Path | None = None) -> str:
    """Return the name of a pair: that of its folder or, for two folders, both names joined by +."""
    return "+".join(Path(folder).resolve().name for folder in (target, draft) if folder is not None)


def model_folders(target: str | Path, draft: str | Path | None = None) -> dict[str, Path]:
    """Return the folders of a pair's models by role. Raises InputError if the pair's folder has no draft."""
    folder = EMBEDDED if str(target) == "embedded" else Path(target)
    if draft is not None:
        return {"target": folder, "draft": Path(draft)}
    if folder.is_dir() and not (folder / "draft").is_dir():
        raise InputError("draft", None, f"{folder} has no subfolder draft/; give the draft model's folder")
    return {"target": folder / "target", "draft": folder / "draft"}


def _of_folder(role: str, folder: Path, within: str) -> Origin:
    digest = hashlib.sha256()
    try:
        digest.update((folder / "config.json").read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(path.name.encode())
            _add_weights(digest, path)
    except OSError as error:
        remedy = f"cannot be read ({error.strerror or error}); give a model folder"
        raise InputError(role, str(folder), remedy) from error
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise InputError(role, str(path), "the weights are damaged; fetch the file again") from error
    return Origin(within + folder.resolve().name, digest.hexdigest(), str(folder.resolve()))


def _add_weights(digest: Any, path: Path) -> None:
    """Add the header of a safetensors file (its length, then JSON) and the middle of every tensor to a digest."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER_BYTES:
            raise ValueError("too long for a safetensors header")
        header = file.read(length)
        digest.update(header)
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        for _, entry in sorted(tensors.items()):
            start, end = entry["data_offsets"]
            middle = max(start, (start + end - SAMPLE_BYTES) // 2)
            file.seek(8 + length + middle)
            digest.update(file.read(min(SAMPLE_BYTES, end - middle)))
