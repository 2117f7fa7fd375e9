"""Files of masks: what is read, and that each mistake is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import InputError
from engines.record.masks import read_masks

GOOD = '{"request": 4, "bits": [-1, 1, 0, 1]}\n\n{"request": 0, "bits": [0]}\n'


def file(folder: Path, text: str) -> Path:
    path = folder / "masks.jsonl"
    path.write_text(text)
    return path


def test_masks_are_read_by_request(tmp_path: Path) -> None:
    found = read_masks(file(tmp_path, GOOD))
    assert {request: mask.tolist() for request, mask in found.items()} == {4: [-1, 1, 0, 1], 0: [0]}
    assert {str(mask.dtype) for mask in found.values()} == {"int8"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no masks"),
        (GOOD + '{"request": 1, "bits": [1, 0]', "line 4 = '{\"request\": 1, \"bits\": [1, 0]': not valid JSON"),
        (GOOD + "[1, 0]", "line 4 = [1, 0]: write one"),
        (GOOD + '{"request": 1}', "line 4 bits = None: it is missing"),
        (GOOD + '{"bits": [1]}', "line 4 request = None: it is missing"),
        (GOOD + '{"request": 1, "bits": []}', "line 4 bits = []"),
        (GOOD + '{"request": 1, "bits": [0, 2]}', "line 4 bits.1 = 2: use -1, 0 or 1"),
        (GOOD + '{"request": 1, "bits": [null]}', "line 4 bits.0 = None"),
        (GOOD + '{"request": 1, "bits": [0, true]}', "line 4 bits.1 = True: use -1, 0 or 1"),
        (GOOD + '{"request": 1, "bits": [1.0]}', "line 4 bits.0 = 1.0: use -1, 0 or 1"),
        (GOOD + '{"request": 1, "bits": "101"}', "line 4 bits = '101'"),
        (GOOD + '{"request": -1, "bits": [1]}', "line 4 request = -1"),
        (GOOD + '{"request": 1, "bits": [1], "k": 4}', "line 4 k = 4: no such setting"),
        (GOOD + '{"request": 4, "bits": [1]}', "line 4 request = 4: it has a mask already"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_masks(file(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = file(tmp_path, GOOD)
    assert set(read_masks(path)) == {0, 4}
    path.unlink()
    with pytest.raises(InputError, match="cannot read the file"):
        read_masks(path)
