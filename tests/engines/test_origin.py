"""A pair's origins tell its models from all others, without loading them."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from engines.errors import InputError
from engines.pairs.origin import EMBEDDED, origins_of, pair_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))


def change_last_tensor(path: Path) -> None:
    """Other numbers of the same shapes: the header and the size of the file stay as they are."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    tensors = json.loads(content[8 : 8 + length])
    start, end = max(entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__")
    content[8 + length + (start + end) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_copy_is_the_same_model_at_another_place(folder: Path) -> None:
    shipped, copy = origins_of("embedded"), origins_of(folder)
    for one, other in ((shipped.target, copy.target), (shipped.draft, copy.draft)):
        assert one.digest == other.digest
    assert shipped.key() != copy.key()
    assert shipped.describe()["draft"] == {"name": "embedded/draft", "digest": shipped.draft.digest}


@pytest.mark.parametrize("role", ["target", "draft"])
def test_other_weights_and_other_settings_make_another_digest(folder: Path, role: str) -> None:
    before = getattr(origins_of(folder), role).digest
    change_last_tensor(folder / role / "model.safetensors")
    weights = getattr(origins_of(folder), role).digest
    config = folder / role / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))
    assert len({before, weights, getattr(origins_of(folder), role).digest}) == 3


def test_two_folders_make_a_pair_that_is_named_after_both(folder: Path) -> None:
    origins = origins_of(folder / "target", folder / "draft")
    assert (origins.target.name, origins.draft.name) == ("target", "draft")
    assert pair_name("models/big", "models/small") == "big+small"
    assert pair_name(folder) == "pair"
    assert pair_name("embedded") == "embedded"


def test_permutation_pairs_are_told_apart_by_what_they_are_made_of() -> None:
    one, other = (origins_of(f"permutation:qwen3-14b+qwen3-0.6b:alpha={alpha}") for alpha in (0.8, 0.7))
    assert one.target.name == "qwen3-14b"
    assert one != other
    assert one == origins_of("permutation:qwen3-14b+qwen3-0.6b")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, struct.pack("<Q", 2) + b"[]"])
def test_damaged_weights_are_refused(folder: Path, damage: bytes) -> None:
    (folder / "draft" / "model.safetensors").write_bytes(damage)
    with pytest.raises(InputError, match=r"draft = .*model\.safetensors.*damaged"):
        origins_of(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"target = .*cannot be read"):
        origins_of(tmp_path, tmp_path)
