"""One VOC XML: encodings, outlines, marks."""

from __future__ import annotations

import math

import pytest

from data.errors import DataError
from data.voc_xml import read_voc_xml

NAMES = {"gb2312": "图像", "GBK": "圖像", "Shift_JIS": "犬", "EUC-KR": "개", "Big5": "圖"}
NAMES |= {"windows-1252": "naïve", "koi8-r": "кот", "utf-16": "кот", "utf-8-sig": "кот"}


def write(tmp_path, name="dog", head="", body="", encoding="utf-8"):
    text = f"{head}<annotation><object><name>{name}</name>{body}</object></annotation>"
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode(encoding))
    return path


def head(encoding):
    return f'<?xml version="1.0" encoding="{encoding}"?>\n'


def read_object(path):
    (entry,) = read_voc_xml(path).objects
    return entry


@pytest.mark.parametrize(("encoding", "name"), NAMES.items())
def test_every_encoding_that_python_knows(tmp_path, encoding, name):
    path = write(tmp_path, name, head(encoding), encoding=encoding)
    assert read_object(path).name == name


@pytest.mark.parametrize(
    ("declared", "written", "name"),
    [
        ("gb2312", "gbk", "圖像"),  # letters that GB2312 lacks
        ("Shift_JIS", "cp932", "①"),
        ("gb2312", "utf-8", "图像"),  # saved again by an editor
        ("utf-16", "utf-8", "dog"),  # the line was copied
        ("ascii", "utf-8", "кот"),
        ("utf-8", "utf-16", "кот"),  # the byte order mark wins
    ],
)
def test_the_encoding_is_not_the_declared_one(tmp_path, declared, written, name):
    path = write(tmp_path, name, head(declared), encoding=written)
    assert read_object(path).name == name


def test_white_space_before_the_declaration(tmp_path):
    assert read_object(write(tmp_path, head="\n  " + head("utf-8"))).name == "dog"


@pytest.mark.parametrize("encoding", ["utf8mb4", "hex", "rot13"])
def test_an_unknown_encoding_is_named_with_the_remedy(tmp_path, encoding):
    path = write(tmp_path, head=head(encoding))
    with pytest.raises(DataError, match=f"{encoding}.*save the file as UTF-8") as caught:
        read_voc_xml(path)
    assert str(caught.value).startswith(str(path))


def test_bytes_that_no_encoding_fits_are_named(tmp_path):
    path = write(tmp_path, "naïve", encoding="latin-1")
    with pytest.raises(DataError, match=r"a\.xml: is not in the encoding 'utf-8'"):
        read_voc_xml(path)


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>6</ymax></bndbox>"
QUARTER = f"<cx>10</cx><cy>20</cy><w>8</w><h>2</h><angle>{math.pi / 2}</angle>"
EIGHTH = f"<cx>10</cx><cy>20</cy><w>6</w><h>2</h><angle>{math.pi / 4}</angle>"
HALF = 4 * math.sqrt(0.5)  # of the width of a 6 x 2 box that is turned by 45 degrees


@pytest.mark.parametrize(
    ("body", "corners", "from_polygon"),
    [
        (BOX, (1, 2, 9, 6), False),
        (f"{BOX}<polygon><x1>0</x1><y1>0</y1></polygon>", (1, 2, 9, 6), False),
        ("<polygon><x1>3</x1><y1>9</y1><x2>7.5</x2><y2>4</y2></polygon>", (3, 4, 7.5, 9), True),
        (
            "<polygon><username/><pt><x>3</x><y>9</y></pt><pt><x>8</x><y>4</y></pt></polygon>",
            (3, 4, 8, 9),
            True,
        ),
        (f"<robndbox>{QUARTER}</robndbox>", (9, 16, 11, 24), True),
        (f"<robndbox>{EIGHTH}</robndbox>", (10 - HALF, 20 - HALF, 10 + HALF, 20 + HALF), True),
    ],
)
def test_outlines(tmp_path, body, corners, from_polygon):
    entry = read_object(write(tmp_path, body=body))
    assert entry.corners == pytest.approx(corners)
    assert entry.from_polygon == from_polygon
    assert not entry.swapped


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<bndbox/>",
        BOX.replace("<xmax>9</xmax>", ""),
        BOX.replace("9", "1e400"),
        BOX.replace("9", "9,5"),
        "<polygon/>",
        "<polygon><x1>3</x1><y1>?</y1></polygon>",
    ],
)
def test_no_numbers_give_no_box(tmp_path, body):
    assert read_object(write(tmp_path, body=body)).corners is None


def test_swapped_corners_are_put_in_order(tmp_path):
    entry = read_object(write(tmp_path, body=BOX.replace("1", "10")))
    assert entry.corners == (9, 2, 10, 6)
    assert entry.swapped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("1", "true", "True", " yes ", "TRUE")),
        *((text, False) for text in ("0", "false", "Unspecified", "", "no")),
        ("maybe", None),
    ],
)
def test_difficult(tmp_path, text, expected):
    assert read_object(write(tmp_path, body=f"<difficult>{text}</difficult>")).difficult is expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("<width>20</width><height>10</height>", (10, 20)),
        ("<width>20.0</width><height>10</height>", (10, 20)),
        ("<width>0</width><height>10</height>", None),
        ("<width>20.5</width><height>10</height>", None),
        ("<width>1e400</width><height>10</height>", None),
        (f"<width>{'9' * 400}</width><height>10</height>", None),
        ("<width/><height/>", None),
        ("", None),
    ],
)
def test_sizes(tmp_path, size, expected):
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation><size>{size}</size></annotation>")
    assert read_voc_xml(path).size == expected


def test_other_xml_is_none(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<annotations><image/></annotations>")
    assert read_voc_xml(path) is None
