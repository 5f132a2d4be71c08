"""A damaged JSON file is noticed by its checksum; an edited one is taken as it is."""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from pathlib import Path

import pytest

from data.errors import DataError
from data.json_checksum import ChecksumWriter
from data.json_files import read_json
from tests.helpers.assertions import assert_clean

TEXT = '{"boxes": [[1.5, 22.25, 30, 41], [5, 6, 7, 8]], "name": "\\u5c0f"'
CONTENT = {"boxes": [[1.5, 22.25, 30, 41], [5, 6, 7, 8]], "name": "小"}


@pytest.fixture
def whole() -> bytes:
    file = io.StringIO()
    writer = ChecksumWriter(file)
    for start in range(0, len(TEXT), 7):
        writer.write(TEXT[start : start + 7])
    writer.end()
    return file.getvalue().encode()


def test_the_field_is_plain_json(whole: bytes, tmp_path: Path) -> None:
    field = {"bytes": len(TEXT), "crc32": f"{zlib.crc32(TEXT.encode()):08x}"}
    assert json.loads(whole) == {**CONTENT, "checksum": field}
    (tmp_path / "a.json").write_bytes(whole)
    assert read_json(tmp_path / "a.json") == CONTENT
    (tmp_path / "a.json").write_bytes(whole + b"\n")
    assert read_json(tmp_path / "a.json") == CONTENT


def test_no_flipped_bit_changes_the_content(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    taken = []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            assert CONTENT.items() <= read_json(path).items()
            taken.append(bit // 8)
    assert min(taken) >= len(TEXT)  # only damage to the field itself is passed over


def test_the_message_says_what_to_do(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(whole.replace(b"41", b"40"))
    with pytest.raises(DataError) as error:
        read_json(path)
    assert_clean(error, path, "is damaged", "write the file again", "remove its last field")


def test_an_edited_file_is_taken_as_it_is(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(whole.replace(b", [5, 6, 7, 8]", b""))
    assert read_json(path)["boxes"] == [[1.5, 22.25, 30, 41]]
    path.write_text(json.dumps(json.loads(whole), indent=1))
    assert read_json(path) == CONTENT


def test_a_field_of_this_name_that_is_something_else_stays(tmp_path: Path) -> None:
    for field in ("abc", {"md5": "abc"}, 7):
        (tmp_path / "a.json").write_text(json.dumps({"a": 1, "checksum": field}))
        assert read_json(tmp_path / "a.json") == {"a": 1, "checksum": field}
