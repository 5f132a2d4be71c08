"""Folders of VOC XML without lists: which image belongs to which file."""

from __future__ import annotations

import unicodedata

import pytest
from PIL import Image

from data.convert_options import ReadOptions
from data.errors import DataError
from data.voc import read_voc
from tests.helpers.labelled_folder import voc_xml, write_image, write_text


def read(root, **options):
    return read_voc([root], ReadOptions(**options))


def pairs(root, **options):
    """For each split, image and class of the first box (else None)."""
    return {
        split.name: [
            (image.path.relative_to(root).as_posix(), *[box.name for box in image.boxes[:1]])
            for image in split.images
        ]
        for split in read(root, **options).splits
    }


def lines(root, **options):
    return "\n".join(
        line for split in read(root, **options).splits for line in split.findings.lines()
    )


@pytest.mark.parametrize(
    ("image", "xml", "stated"),
    [
        ("a.jpg", "a.xml", "a.jpg"),
        ("a.png", "a.xml", "a.png"),
        ("a.png", "a.xml", "a.jpg"),  # converted since
        ("a.JPG", "a.xml", "a.jpg"),
        ("a.jpg", "a.xml", "a"),  # without suffix
        ("a.v1.jpg", "a.v1.xml", "a.v1"),
        ("a.jpg", "other.xml", "a.jpg"),
        ("a.jpg", "other.xml", "a"),
        ("a.jpg", "a.xml", ""),
        ("a.jpg", "a.xml", "renamed.jpg"),
        ("a.jpg", "b.xml", r"C:\photos\a.jpg"),
        ("my photo (1).jpg", "my photo (1).xml", "my photo (1).jpg"),
        ("my photo.jpg", "1.xml", "my%20photo.jpg"),
        (unicodedata.normalize("NFD", "café.png"), "1.xml", unicodedata.normalize("NFC", "café")),
        ("images/a.jpg", "annotations/a.xml", "a.jpg"),
    ],
)
def test_the_image_of_an_xml(tmp_path, image, xml, stated):
    write_image(tmp_path / image)
    write_text(tmp_path / xml, voc_xml(file_name=stated))
    assert pairs(tmp_path) == {"": [(image, "dog")]}


def test_the_path_of_another_machine(tmp_path):
    write_image(tmp_path / "a.jpg")
    more = "<path>/home/someone/labels/a.jpg</path>"
    write_text(tmp_path / "1.xml", voc_xml(file_name="gone.jpg", more=more))
    assert pairs(tmp_path) == {"": [("a.jpg", "dog")]}


def test_stale_names_after_files_were_renamed(tmp_path):
    for new, old in (("1", "2"), ("2", "3"), ("3", "1")):
        write_image(tmp_path / f"{new}.jpg")
        write_text(tmp_path / f"{new}.xml", voc_xml([(new, 1, 1, 5, 5)], f"{old}.jpg"))
    assert pairs(tmp_path) == {"": [("1.jpg", "1"), ("2.jpg", "2"), ("3.jpg", "3")]}


@pytest.mark.parametrize(
    ("xml", "image"),
    [
        ("train/{}.xml", "train/{}.jpg"),  # LabelImg, Roboflow
        ("train/annotations/{}.xml", "train/images/{}.jpg"),
        ("annotations/train/{}.xml", "images/train/{}.jpg"),
    ],
)
def test_splits_with_the_same_names(tmp_path, xml, image):
    for split in ("train", "valid", "test"):
        write_image(tmp_path / image.format("1").replace("train", split))
        path = tmp_path / xml.format("1").replace("train", split)
        write_text(path, voc_xml([(split, 1, 1, 5, 5)], "1.jpg"))
    expected = {
        {"valid": "val"}.get(split, split): [(image.format("1").replace("train", split), split)]
        for split in ("train", "valid", "test")
    }
    assert pairs(tmp_path) == expected
    assert list(pairs(tmp_path)) == ["train", "val", "test"]
    assert pairs(tmp_path, split="valid") == {"val": expected["val"]}
    with pytest.raises(DataError, match="no split 'best'; give --split one of: train, val, test"):
        read(tmp_path, split="best")


def test_xml_in_one_folder_and_split_images_in_another(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        write_image(tmp_path / "images" / split / f"{name}.jpg")
        write_text(tmp_path / "xml" / f"{name}.xml", voc_xml(file_name=f"{name}.jpg"))
    found = read(tmp_path / "xml", images_root=tmp_path / "images").splits
    assert [(split.name, len(split.images)) for split in found] == [("train", 1), ("val", 1)]


def test_what_has_no_partner_is_counted(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "photos" / "b.jpg")
    for name in ("a", "c", "d"):
        write_text(tmp_path / f"{name}.xml", voc_xml(file_name=f"{name}.jpg"))
    text = lines(tmp_path)
    assert "left out: XML files whose image was not found: 2 (first: " in text
    assert "note: images without XML, not taken (see --keep-unlabelled): 1" in text
    assert pairs(tmp_path) == {"": [("a.jpg", "dog")]}
    assert pairs(tmp_path, keep_unlabelled=True) == {"": [("a.jpg", "dog"), ("photos/b.jpg",)]}
    with pytest.raises(DataError, match=r"c\.xml: XML files whose image was not found"):
        read(tmp_path, strict=True)


def test_two_xmls_of_one_image(tmp_path):
    write_image(tmp_path / "a.jpg")
    for name in ("x", "y"):
        write_text(tmp_path / f"{name}.xml", voc_xml([(name, 1, 1, 5, 5)]))
    assert pairs(tmp_path) == {"": [("a.jpg", "x")]}
    assert "XML files of an image that another XML describes: 1" in lines(tmp_path)


@pytest.mark.parametrize(
    ("mine", "theirs", "found"),
    [
        ("c1/{}", "c2/{}", {"": [("c1/2.jpg", "dog"), ("c2/1.jpg", "cat")]}),
        ("img/c1/{}", "img/c2/{}", {"": [("img/c1/2.jpg", "dog"), ("img/c2/1.jpg", "cat")]}),
        (
            "train/images/{}",
            "val/images/{}",
            {"train": [("train/images/2.jpg", "dog")], "val": [("val/images/1.jpg", "cat")]},
        ),
    ],
)
def test_an_xml_without_image_does_not_take_that_of_another(tmp_path, mine, theirs, found):
    """1.jpg is gone from the first folder, and another folder has one too."""
    xmls = [folder.replace("im", "annotations/im") for folder in (mine, theirs)]
    write_image(tmp_path / mine.format("2.jpg"))
    write_image(tmp_path / theirs.format("1.jpg"))
    for folder, name, label in ((0, "1", "gone"), (0, "2", "dog"), (1, "1", "cat")):
        box = voc_xml([(label, 1, 1, 5, 5)], f"{name}.jpg")
        write_text(tmp_path / xmls[folder].format(f"{name}.xml"), box)
    assert pairs(tmp_path) == found
    assert "left out: XML files " in lines(tmp_path)


def test_an_image_of_another_split_is_not_taken(tmp_path):
    for name in ("train/images/2", "val/images/1"):
        write_image(tmp_path / f"{name}.jpg")
    for name in ("1", "2"):
        write_text(tmp_path / f"train/xml/{name}.xml", voc_xml(file_name=f"{name}.jpg"))
    assert pairs(tmp_path, split="train") == {"train": [("train/images/2.jpg", "dog")]}
    assert "XML files whose image was not found: 1" in lines(tmp_path)


def test_masks_are_no_photographs(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        write_image(tmp_path / folder / "a.png")
    write_image(tmp_path / "SegmentationClass" / "b.png")
    for name in ("a", "b"):
        write_text(tmp_path / f"Annotations/{name}.xml", voc_xml(file_name=f"{name}.png"))
    assert pairs(tmp_path) == {"": [("JPEGImages/a.png", "dog")]}
    write_text(tmp_path / "ImageSets/Main/default.txt", "a\nb\n")
    assert pairs(tmp_path) == {"default": [("JPEGImages/a.png", "dog")]}


def test_another_suffix_is_said_to_be_a_guess(tmp_path):
    write_image(tmp_path / "a.png")
    write_text(tmp_path / "a.xml", voc_xml(file_name="a.jpg"))
    write_image(tmp_path / "b.JPG")
    write_text(tmp_path / "b.xml", voc_xml(file_name="b.jpg"))
    said = f"guessed: images with another suffix than the XML says: 1 (first: {tmp_path / 'a.png'})"
    assert said in lines(tmp_path)


LISTS = ("ImageSets/Main/train.txt", "ImageSets/Main/val.txt")


def two_cameras(root, *listed):
    """Frames of equal names, as CVAT writes tasks with subfolders."""
    for camera in ("c1", "c2"):
        for frame in ("1", "2"):
            write_image(root / f"JPEGImages/{camera}/{frame}.png")
            box = voc_xml([(camera, 1, 1, 5, 5)], f"{camera}/{frame}.png")
            write_text(root / f"Annotations/{camera}/{frame}.xml", box)
    for path, text in zip(LISTS, listed, strict=True):
        write_text(root / path, text)


def test_lists_tell_equal_names_in_subfolders_apart(tmp_path):
    lists = "c1/1\nc1/2.png\nJPEGImages/c2/1.png Annotations/c2/1.xml\n", "JPEGImages\\c2\\2.png\n"
    two_cameras(tmp_path, *lists)
    images = "JPEGImages/{}/{}.png"
    expected = {
        "train": [(images.format(c, n), c) for c, n in (("c1", 1), ("c1", 2), ("c2", 1))],
        "val": [(images.format("c2", 2), "c2")],
    }
    assert pairs(tmp_path) == expected
    for path in tmp_path.glob("JPEGImages/*/*"):  # the files alone say where images would be
        path.unlink()
    assert pairs(tmp_path) == expected


def test_a_name_in_a_list_that_fits_two_xmls_is_an_error(tmp_path):
    two_cameras(tmp_path, "c1/1\n", "2\n")
    with pytest.raises(DataError, match=r"val\.txt: '2' in the list may be .*c1/2\.xml or .*c2/2"):
        read(tmp_path)
    write_text(tmp_path / "Annotations/2.xml", voc_xml([("top", 1, 1, 5, 5)], "2.png"))
    write_image(tmp_path / "JPEGImages/2.png")
    assert pairs(tmp_path)["val"] == [("JPEGImages/2.png", "top")]


def test_hidden_and_foreign_files_are_passed_over(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "a.xml", voc_xml())
    write_text(tmp_path / "__MACOSX" / "._a.xml", "not XML")
    write_text(tmp_path / ".idea" / "workspace.xml", "not XML")
    write_text(tmp_path / "config.xml", "<config/>")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert pairs(tmp_path) == {"": [("a.jpg", "dog")]}
    assert "left out: XML files without VOC's <annotation>: 1" in lines(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(0, 0), (20, 0), ("", "")])
def test_a_missing_size_is_the_images(tmp_path, width, height):
    write_image(tmp_path / "a.jpg", 30, 40)
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    write_text(tmp_path / "a.xml", voc_xml(width=0, more=size))
    ((image,),) = [split.images for split in read(tmp_path).splits]
    assert (image.height, image.width) == (40, 30)
    assert "guessed: sizes that the XML lacks, taken from the image: 1" in lines(tmp_path)


@pytest.mark.parametrize(
    ("stated", "orientation", "note"),
    [
        ((20, 10), None, ""),
        ((20, 10), 6, ""),  # as stored
        ((10, 20), 6, "data.exif=apply"),  # as shown
        ((10, 20), None, "another <size> than their image"),
        ((40, 20), None, "another <size> than their image"),
    ],
)
def test_stated_sizes_are_compared_with_the_image(tmp_path, stated, orientation, note):
    write_image(tmp_path / "a.jpg", 20, 10, orientation)
    write_text(tmp_path / "a.xml", voc_xml(width=stated[0], height=stated[1]))
    ((image,),) = [split.images for split in read(tmp_path).splits]
    assert (image.width, image.height) == stated
    text = lines(tmp_path)
    assert note in text
    assert bool(note) == ("note: " in text)


def test_an_unreadable_image_is_left_out(tmp_path):
    write_text(tmp_path / "a.jpg", "not an image")
    write_image(tmp_path / "b.jpg")
    for name in ("a", "b"):
        write_text(tmp_path / f"{name}.xml", voc_xml(file_name=f"{name}.jpg"))
    assert pairs(tmp_path) == {"": [("b.jpg", "dog")]}
    assert "left out: images that cannot be read: 1" in lines(tmp_path)


def test_a_broken_exif_block_costs_nothing(tmp_path, monkeypatch):
    def getexif(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", getexif)
    write_image(tmp_path / "a.jpg", 30, 40)
    write_text(tmp_path / "a.xml", voc_xml(width=0))
    ((image,),) = [split.images for split in read(tmp_path).splits]
    assert (image.height, image.width) == (40, 30)
