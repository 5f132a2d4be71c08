"""The VOC converter on hand-written folders, with boxes worked out by hand."""

from __future__ import annotations

import json
import re

import pytest
from pycocotools.coco import COCO

from data import voc
from data.convert_options import ReadOptions
from data.errors import DataError
from data.labelled_images import Findings


def box(name="dog", corners=(1, 1, 10, 5), difficult=0, extra=""):
    xmin, ymin, xmax, ymax = corners
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{extra}<bndbox>"
        f"<ymax>{ymax}</ymax><xmax>{xmax}</xmax><ymin>{ymin}</ymin><xmin>{xmin}</xmin>"
        "</bndbox></object>"
    )


def xml(*objects, width=20, height=10):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>any.jpg</filename>{size}{''.join(objects)}</annotation>"


def write_voc(root, files, split="trainval", listed=None):
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "Annotations").mkdir()
    names = files if listed is None else listed
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def boxes_of(tmp_path, *objects, **options):
    root = write_voc(tmp_path / "VOC2007", {"000001": xml(*objects)})
    return voc.convert([root], "trainval", **options)["annotations"]


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((1, 1, 20, 10), [0, 0, 20, 10]),  # the whole image of 20 x 10
        ((5, 3, 5, 3), [4, 2, 1, 1]),  # one pixel
        ((3, 2, 12, 7), [2, 1, 10, 6]),
        ((4.5, 2.25, 10.0, 9.0), [3.5, 1.25, 6.5, 7.75]),  # VOC 2012 has decimals
        ((0, 1, 21, 10), [0, 0, 20, 10]),  # sticks out: clipped
        ((8, 7, 4, 5), [3, 4, 5, 3]),  # swapped
    ],
)
def test_boxes_by_hand(tmp_path, corners, expected):
    (annotation,) = boxes_of(tmp_path, box(corners=corners))
    assert annotation["bbox"] == expected
    assert annotation["area"] == expected[2] * expected[3]


def test_twenty_classes_in_alphabetical_order(tmp_path):
    assert len(voc.CLASSES) == 20
    assert list(voc.CLASSES) == sorted(voc.CLASSES)
    annotations = boxes_of(tmp_path, *(box(name) for name in voc.CLASSES))
    assert [a["category_id"] for a in annotations] == list(range(1, 21))
    by_hand = {"aeroplane": 1, "cat": 8, "diningtable": 11, "person": 15, "tvmonitor": 20}
    assert {name: voc.CLASSES.index(name) + 1 for name in by_hand} == by_hand


@pytest.mark.parametrize(
    ("difficult", "expected"),
    [
        ("crowd", [(12, 0, 0), (8, 1, 1)]),
        ("keep", [(12, 0, 0), (8, 1, 0)]),
        ("drop", [(12, 0, 0)]),
    ],
)
def test_difficult_objects(tmp_path, difficult, expected):
    found = boxes_of(tmp_path, box("dog"), box("cat", difficult=1), difficult=difficult)
    assert [(a["category_id"], a["difficult"], a["iscrowd"]) for a in found] == expected


def test_object_without_difficult_and_with_parts(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>7</xmin><ymin>7</ymin></bndbox></part>"
    text = box("person", (2, 2, 4, 4), extra=part).replace("<difficult>0</difficult>", "")
    (annotation,) = boxes_of(tmp_path, text)
    assert annotation["bbox"] == [1, 1, 3, 3]
    assert annotation["iscrowd"] == 0


def test_two_years_are_joined_and_valid_for_pycocotools(tmp_path, capsys):
    kit = tmp_path / "VOCdevkit"
    write_voc(kit / "VOC2007", {"000005": xml(box("dog"), box("cat")), "000007": xml()})
    write_voc(kit / "VOC2012", {"2008_000008": xml(box("bus", difficult=1), width=30, height=40)})
    (kit / "VOC2007" / "Annotations" / "000009.xml").write_text(xml(box()))  # not in the list
    output = tmp_path / "out" / "voc0712.json"
    roots = ["--voc", str(kit / "VOC2007"), "--voc", str(kit / "VOC2012")]
    assert voc.main([*roots, "--split", "trainval", "--output", str(output)]) == 0
    assert "3 images, 3 boxes, 1 of them difficult" in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "VOC2007/JPEGImages/000005.jpg", "height": 10, "width": 20},
        {"id": 2, "file_name": "VOC2007/JPEGImages/000007.jpg", "height": 10, "width": 20},
        {"id": 3, "file_name": "VOC2012/JPEGImages/2008_000008.jpg", "height": 40, "width": 30},
    ]
    coco = COCO(str(output))
    assert sorted(coco.anns) == [1, 2, 3]
    assert [len(coco.getAnnIds(imgIds=[i])) for i in (1, 2, 3)] == [2, 0, 1]
    assert coco.getAnnIds(iscrowd=True) == [3]


def test_images_root(tmp_path):
    root = write_voc(tmp_path / "a" / "VOC2007", {"1": xml(box())})
    for base, expected in (
        (None, "VOC2007/JPEGImages/1.jpg"),
        (tmp_path, "a/VOC2007/JPEGImages/1.jpg"),
        (root, "JPEGImages/1.jpg"),
    ):
        content = voc.convert([root], "trainval", images_root=base)
        assert content["images"][0]["file_name"] == expected
    with pytest.raises(ValueError, match="outside the images root"):
        voc.convert([root], "trainval", images_root=tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><size>", "not readable as XML"),
        (xml(width=0), "without a size"),
        (xml(width="1e400"), "without a size"),
        ("<annotation></annotation>", "without a size"),
        ("<doc></doc>", "without VOC's <annotation>"),
    ],
)
def test_bad_xml_is_named(tmp_path, text, message):
    root = write_voc(tmp_path / "VOC2007", {"000001": text})
    with pytest.raises(DataError, match=message) as caught:
        voc.convert([root], "trainval")
    assert str(root / "Annotations" / "000001.xml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (box(corners=(30, 1, 40, 5)), "boxes without area or outside"),
        (box(corners=(3, 12, 9, 12)), "boxes without area or outside"),
        (box(corners=(1, 1, "ten", 5)), "without four numbers"),
        (box(corners=(1, 1, "nan", 5)), "without four numbers"),
        (box(corners=(1, 1, "1e400", 5)), "without four numbers"),
        (box(name=""), "without a class name"),
    ],
)
def test_bad_objects_are_left_out_and_counted(tmp_path, capsys, bad, message):
    root = write_voc(tmp_path / "VOC2007", {"1": xml(box(), bad), "2": xml(bad)})
    output = tmp_path / "out.json"
    arguments = ["--voc", str(root), "--split", "trainval", "--output", str(output)]
    assert voc.main(arguments) == 0
    out = capsys.readouterr().out
    assert "2 images, 1 box, 1 of the images without boxes" in out
    assert re.search(rf"left out: .*{message}.*: 2 \(first: .*1\.xml\)", out)
    output.unlink()
    assert voc.main([*arguments, "--strict"]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_the_unreadable_files_are_counted(tmp_path):
    root = write_voc(tmp_path / "VOC2007", {"1": xml(), "2": "<annotation>", "3": ""})
    with pytest.raises(DataError, match="2.xml: not readable.*and 1 more file like it"):
        voc.convert([root], "trainval")


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (["dog", "cat"], None, list(voc.CLASSES)),
        (["dog", "helmet"], None, ["dog", "helmet"]),
        (["dog", "Dog"], None, ["Dog", "dog"]),
        (["zebra", "ant"], None, ["ant", "zebra"]),
        (["dog", "cat"], ["cat", "dog"], ["cat", "dog"]),
    ],
)
def test_classes_come_from_all_files_unless_given(tmp_path, names, classes, expected):
    files = {str(number): xml(box(name)) for number, name in enumerate(names)}
    root = write_voc(tmp_path / "VOC2007", files, listed=["0"])  # others count, too
    content = voc.convert([root], "trainval", classes=classes)
    assert [entry["name"] for entry in content["categories"]] == expected
    assert [entry["id"] for entry in content["categories"]] == list(range(1, len(expected) + 1))
    (annotation,) = content["annotations"]
    assert expected[annotation["category_id"] - 1] == names[0]


def test_classes_that_are_not_given_are_left_out(tmp_path):
    root = write_voc(tmp_path / "V", {"1": xml(box("dog"), box("Cat"), box("cow"), box("cow"))})
    findings = Findings()
    content = voc.convert([root], "trainval", classes=["cat", "dog"], findings=findings)
    assert [entry["category_id"] for entry in content["annotations"]] == [2, 1]
    lines = "\n".join(findings.lines())
    assert "note: boxes of class 'cow', left out by --classes: 2" in lines
    assert "changed: class 'Cat' taken for 'cat': 1" in lines


@pytest.mark.parametrize(
    ("corners", "first_pixel", "expected"),
    [
        ([(0, 0, 20, 10), (4, 3, 8, 9)], None, [[0, 0, 20, 10], [4, 3, 4, 6]]),
        ([(0.5, 1, 20, 10), (1, 0, 8, 9)], None, [[0, 0, 20, 10], [0, 0, 8, 9]]),
        ([(0, 1, 20, 10), (1, 4, 8, 9)], None, [[0, 0, 20, 10], [0, 3, 8, 6]]),  # one slip
        ([(0, 0, 20, 10), (4, 3, 8, 9)], 1, [[0, 0, 20, 10], [3, 2, 5, 7]]),
        ([(1, 1, 20, 10)], 0, [[1, 1, 19, 9]]),
    ],
)
def test_corners_that_count_from_0_are_recognised(tmp_path, corners, first_pixel, expected):
    files = {str(number): xml(box(corners=each)) for number, each in enumerate(corners)}
    root = write_voc(tmp_path / "V", files)
    findings = Findings()
    options = ReadOptions(first_pixel=first_pixel)
    content = voc.convert([root], "trainval", options=options, findings=findings)
    assert [entry["bbox"] for entry in content["annotations"]] == expected
    assert "count from" in findings.lines()[0]


@pytest.mark.parametrize("difficult", ["crowd", "keep", "drop"])
def test_difficult_objects_are_reported(tmp_path, capsys, difficult):
    text = xml(box(), box("cat", difficult="true"), box("cat", difficult="Unspecified"))
    root = write_voc(tmp_path / "V", {"1": text})
    arguments = ["--voc", str(root), "--split", "trainval", "--output", str(tmp_path / "o.json")]
    assert voc.main([*arguments, "--difficult", difficult]) == 0
    expected = {
        "crowd": "3 boxes, 1 of them difficult and ignored",
        "keep": "3 boxes, 1 of them difficult and kept",
        "drop": "difficult objects, dropped: 1",
    }
    assert expected[difficult] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a\nmy photo 1\n", ["a", "my photo 1"]),
        ("\ufeffa\nb\n", ["a", "b"]),
        ("a.jpg\r\nb.PNG\r\n\r\n", ["a", "b"]),
        ("a\na\nb\n", ["a", "b"]),
        ("JPEGImages/a.jpg\nJPEGImages\\b.jpg\n", ["a", "b"]),
        ("JPEGImages/a.jpg Annotations/a.xml\n", ["a"]),
        ("b\nmissing 1\n", ["b"]),
    ],
)
def test_lists_as_tools_write_them(tmp_path, lines, expected):
    root = write_voc(tmp_path / "V", {name: xml(box()) for name in ("a", "b", "my photo 1")})
    (root / "ImageSets" / "Main" / "train.txt").write_text(lines, encoding="utf-8", newline="")
    content = voc.convert([root], "train")
    assert [image["file_name"] for image in content["images"]] == [
        f"V/JPEGImages/{name}.jpg" for name in expected
    ]
    assert len(content["annotations"]) == len(expected)


@pytest.mark.parametrize(
    ("listed", "message"),
    [([], "lists no image"), (["1 -1"], "for one class"), (["1  1", "2  0"], "for one class")],
)
def test_bad_lists_are_named(tmp_path, listed, message):
    root = write_voc(tmp_path / "VOC2007", {"1": xml()}, listed=listed)
    with pytest.raises(DataError, match=message):
        voc.convert([root], "trainval")


def test_command_line_errors_are_one_line(tmp_path, capsys):
    root = write_voc(tmp_path / "VOC2007", {"1": xml()})
    arguments = ["--voc", str(root), "--output", str(tmp_path / "out.json"), "--split"]
    assert voc.main([*arguments, "test"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "test.txt" in message
    assert voc.main([*arguments, "trainval", "--voc", str(root)]) == 1
    assert "given twice" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_listed_names_without_xml_are_counted(tmp_path, capsys):
    root = write_voc(tmp_path / "V", {"1": xml(box())}, listed=["1", "2", "3"])
    arguments = ["--voc", str(root), "--split", "trainval", "--output", str(tmp_path / "o.json")]
    assert voc.main(arguments) == 0
    assert re.search(
        r"images without XML, not taken.*: 2 \(first: .*2\.jpg", capsys.readouterr().out
    )


def test_unknown_difficult_is_refused(tmp_path):
    with pytest.raises(ValueError, match="crowd, keep, drop"):
        voc.convert([tmp_path], "trainval", difficult="ignore")
