"""The VOC converter on hand-written folders, with boxes worked out by hand."""

from __future__ import annotations

import json

import pytest
from pycocotools.coco import COCO

from data import voc
from data.errors import DataError


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
        (xml(box("unicorn")), "unknown class 'unicorn'"),
        (xml(box(corners=(1, 1, "ten", 5))), "bndbox/xmax is 'ten', not a number"),
        (xml(box(corners=(1, 1, "nan", 5))), "not a number"),
        (xml(box(corners=(8, 1, 4, 5))), "box 8 1 4 5 of a dog is empty"),
        (xml(box(corners=(30, 1, 40, 5))), "outside the image"),
        (xml(width=0), "0 x 10 pixels"),
        ("<annotation></annotation>", "size/width is None, not a number"),
    ],
)
def test_bad_xml_is_named(tmp_path, text, message):
    root = write_voc(tmp_path / "VOC2007", {"000001": text})
    with pytest.raises(DataError, match=message) as caught:
        voc.convert([root], "trainval")
    assert str(root / "Annotations" / "000001.xml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("listed", "message"), [([], "lists no image"), (["1 -1"], "for one class")]
)
def test_bad_lists_are_named(tmp_path, listed, message):
    root = write_voc(tmp_path / "VOC2007", {"1": xml()}, listed=listed)
    with pytest.raises(DataError, match=message):
        voc.convert([root], "trainval")


def test_command_line_errors_are_one_line(tmp_path, capsys):
    root = write_voc(tmp_path / "VOC2007", {"1": xml()}, listed=["1", "2"])
    arguments = ["--voc", str(root), "--output", str(tmp_path / "out.json"), "--split"]
    assert voc.main([*arguments, "test"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "test.txt" in message
    assert voc.main([*arguments, "trainval"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "2.xml: no such file" in last
    assert voc.main([*arguments, "trainval", "--voc", str(root)]) == 1
    assert "given twice" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_unknown_difficult_is_refused(tmp_path):
    with pytest.raises(ValueError, match="crowd, keep, drop"):
        voc.convert([tmp_path], "trainval", difficult="ignore")
