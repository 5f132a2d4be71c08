"""A pipe is refused before it is opened, which would wait for ever."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from data.errors import DataError
from data.fonts import CaptionFont
from data.image_header import read_header
from data.images import read_bytes, read_image
from data.json_files import read_json
from data.label_files import read_text
from data.regular_file import require_regular
from data.voc_xml import read_voc_xml
from tests.helpers.assertions import assert_clean


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes among the files of this system")
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


READERS = (require_regular, read_json, read_text, read_voc_xml, read_header, read_image, read_bytes)


@pytest.mark.parametrize("read", [*READERS, CaptionFont])
def test_a_pipe_is_named(pipe: Path, read) -> None:
    with pytest.raises(DataError) as error:
        read(pipe)
    assert_clean(error, pipe, "is a pipe, not a file")


def test_so_is_a_link_to_it(pipe: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pipe)
    with pytest.raises(DataError, match="link: is a pipe"):
        require_regular(tmp_path / "link")


def test_a_socket_and_a_device_are_named(tmp_path: Path, monkeypatch) -> None:
    if not hasattr(socket, "AF_UNIX") or not os.path.exists("/dev/null"):
        pytest.skip("neither among the files of this system")
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        with pytest.raises(DataError, match="is a socket"):
            require_regular("socket")
    with pytest.raises(DataError, match="is a device"):
        require_regular("/dev/null")


def test_other_paths_pass(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path, tmp_path / "missing", "a\0b"):
        require_regular(path)
