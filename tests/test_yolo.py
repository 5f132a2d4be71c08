"""YOLO folders: class names, splits, which text belongs to which image, and their lines."""

from __future__ import annotations

import pytest

from data.convert_options import ReadOptions
from data.errors import DataError
from data.yolo import read_yolo
from tests.helpers.assertions import assert_clean
from tests.helpers.labelled_folder import write_image, write_text

ONE_BOX = "0 0.5 0.5 0.5 0.4\n"


def read(source, classes=None, **options):
    return read_yolo(source, ReadOptions(**options), classes)


def pairs(root, source=None, **options):
    """For each split, image and class of the first box (else None)."""
    return {
        split.name: [
            (image.path.relative_to(root).as_posix(), *[box.name for box in image.boxes[:1]])
            for image in split.images
        ]
        for split in read(source or root, **options).splits
    }


def said(labelled):
    lines = [line for split in labelled.splits for line in split.findings.lines()]
    return "\n".join(labelled.remarks + lines)


def one_image(root, text, names="dog\ncat\n", **image):
    """An image of 20 x 10 with a text."""
    write_image(root / "a.jpg", **image)
    write_text(root / "a.txt", text)
    write_text(root / "classes.txt", names)
    return root


def boxes(labelled):
    return [(box.name, *box.corners) for s in labelled.splits for i in s.images for box in i.boxes]


@pytest.mark.parametrize(
    ("text", "expected", "finding"),
    [
        (ONE_BOX, [("dog", 5, 3, 15, 7)], ""),
        ("\ufeff1 0.5 0.5 1 1\r\n\r\n", [("cat", 0, 0, 20, 10)], ""),
        ("0.0 .5 5e-1 .5 .4", [("dog", 5, 3, 15, 7)], ""),
        ("0 0.5 0.5 0.5 0.4 0.87\n", [("dog", 5, 3, 15, 7)], "a sixth number"),
        ("0 0.1 0.2 0.5 0.4 0.3 0.9\n", [("dog", 2, 2, 10, 9)], "polygons"),
        ("1 0 0 1 0 1 1 0 1\n", [("cat", 0, 0, 20, 10)], "polygons"),
        (ONE_BOX + "1 0.5 0.5 0.5 0.4\n" + ONE_BOX, [("dog", 5, 3, 15, 7), ("cat", 5, 3, 15, 7)],
         "repeat another, taken once: 1"),
        ("", [], ""),
        ("\n \n", [], ""),
    ],
)  # fmt: skip
def test_lines_by_hand(tmp_path, text, expected, finding):
    labelled = read(one_image(tmp_path, text))
    assert [entry[0] for entry in boxes(labelled)] == [entry[0] for entry in expected]
    for found, wanted in zip(boxes(labelled), expected, strict=True):
        assert found[1:] == pytest.approx(wanted[1:], abs=1e-9)
    assert finding in said(labelled)
    assert len(labelled.splits[0].images) == 1  # without objects, too


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 120 80 40 30", "has the number 120, but YOLO's are fractions.*divide pixels"),
        ("0 0.5 0.5 1.2 0.4", "has the number 1.2"),
        ("0 -0.5 0.5 0.2 0.4", "has the number -0.5"),
        ("0 0.1 0.2 0.5 0.4 1.5 0.9", "has the number 1.5"),
        ("0 nan 0.5 0.5 0.4", "something else than numbers"),
        ("0 inf 0.5 0.5 0.4", "something else than numbers"),
        ("dog 0.5 0.5 0.5 0.4", "something else than numbers"),
        ("0 0,5 0,5 0,5 0,4", "commas or semicolons.*decimals with a point"),
        ("0;0.5;0.5;0.5;0.4", "commas or semicolons"),
        ("2 0.5 0.5 0.5 0.4", "is of class 2, but there are names for 0 to 1 only"),
        ("-1 0.5 0.5 0.5 0.4", "is of class -1"),
        ("0.5 0.5 0.5 0.5 0.4", "is of class 0.5"),
        ("0", "has 1 numbers"),
        ("0 0.5 0.5 0.5", "has 4 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 8 numbers"),
    ],
)
def test_bad_lines_are_named_with_the_reason(tmp_path, line, message):
    one_image(tmp_path, f"{ONE_BOX}\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'a.txt'}:3: ")
    assert "\n" not in str(caught.value)


def test_all_bad_files_are_counted(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"{name}.jpg")
        write_text(tmp_path / f"{name}.txt", "0 9 9 9 9" if name != "a" else ONE_BOX)
    with pytest.raises(DataError, match=r"b\.txt:1: .*and 1 more file like it"):
        read(tmp_path, classes=["dog"])


YAMLS = {
    "list": "train: images\nnames: [dog, cat]\n",
    "mapping": "train: images\nnames:\n  1: cat\n  0: dog\n",
    "of every root": "path: .\ntrain: ./images\nnc: 2\nnames: ['dog', \"cat\"]\n",
    "Roboflow": "train: ../images\nval:\ntest: ../test/images\nnc: 2\nnames: [dog, cat]\n",
    "another machine": "train: /content/drive/set/images\nnames: [dog, cat]\n",
    "Windows": "train: D:\\set\\images\nnames: [dog, cat]\n",
    "list of folders": "train: [images]\nnames: [dog, cat]\n",
    "list of files": "train: train.txt\nnames: [dog, cat]\n",
    "file of names": "train: images\nnames: my.names\n",
    "names elsewhere": "train: images\nnc: 2\n",
}


@pytest.mark.parametrize("name", YAMLS)
def test_descriptions_as_tools_write_them(tmp_path, name):
    write_image(tmp_path / "images" / "a.jpg")
    write_text(tmp_path / "labels" / "a.txt", "1 0.5 0.5 0.5 0.4\n")
    write_text(tmp_path / "train.txt", "./images/a.jpg\n")
    write_text(tmp_path / "my.names", "dog\ncat\n")
    write_text(tmp_path / "data.yaml", YAMLS[name])
    for source in (tmp_path, tmp_path / "data.yaml"):
        assert pairs(tmp_path, source) == {"train": [("images/a.jpg", "cat")]}
        assert read(source).classes == ("dog", "cat")


def test_names_that_yaml_would_not_take_for_texts(tmp_path):
    one_image(tmp_path, "1 0.5 0.5 0.5 0.4\n2 0.5 0.5 0.5 0.4\n")
    write_text(tmp_path / "data.yaml", "train: .\nnames: [yes, no, 1.0]\n")
    labelled = read(tmp_path)
    assert labelled.classes == ("yes", "no", "1.0")
    assert [entry[0] for entry in boxes(labelled)] == ["no", "1.0"]


@pytest.mark.parametrize("line", ["data/set/a.jpg", "C:\\set\\a.jpg", "\ufeffa.jpg", "./a.jpg"])
def test_darknet_and_lists_of_other_machines(tmp_path, line):
    one_image(tmp_path, ONE_BOX, names="")
    write_text(tmp_path / "obj.names", "dog\n")
    write_text(tmp_path / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = obj.names\n")
    write_text(tmp_path / "train.txt", f"{line}\ngone.jpg\n")
    assert pairs(tmp_path) == {"train": [("a.jpg", "dog")]}
    assert "train.txt that were not found: 1 (first: gone.jpg)" in said(read(tmp_path))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("images/a.jpg", "labels/a.txt"),
        ("images/a.jpg", "images/a.txt"),
        ("a.jpg", "a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/train/a.b.jpg", "labels/train/a.b.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("JPEGImages/a.jpg", "labels/a.txt"),
        ("obj_train_data/a.png", "obj_train_data/a.txt"),
        ("photos/a.jpg", "annotations/a.txt"),
        ("photos/train/a.jpg", "texts/train/a.txt"),
    ],
)
def test_the_text_of_an_image(tmp_path, image, text):
    write_image(tmp_path / image)
    write_text(tmp_path / text, ONE_BOX)
    write_text(tmp_path / "classes.txt", "dog\n")
    split = "train" if "train" in image else ""
    assert pairs(tmp_path) == {split: [(image, "dog")]}
    assert "texts without an image" not in said(read(tmp_path))


def test_a_text_of_another_split_is_not_taken(tmp_path):
    write_image(tmp_path / "train/images/a.jpg")
    write_image(tmp_path / "train/images/b.jpg")
    write_text(tmp_path / "train/labels/b.txt", ONE_BOX)
    write_text(tmp_path / "valid/labels/a.txt", ONE_BOX)
    write_text(tmp_path / "classes.txt", "dog\n")
    assert pairs(tmp_path) == {"train": [("train/images/b.jpg", "dog")]}
    assert "texts without an image, not taken: 1" in said(read(tmp_path))


@pytest.mark.parametrize(
    ("texts", "found", "finding"),
    [
        (["ann/1.txt"], [], "texts that fit two images alike, not taken: 1"),
        (["ann/c2/1.txt"], ["img/c2/1.jpg"], "images without a text, not taken"),
        (["ann/c1/1.txt", "ann/c2/1.txt"], ["img/c1/1.jpg", "img/c2/1.jpg"], ""),
    ],
)
def test_a_text_is_of_one_image(tmp_path, texts, found, finding):
    write_image(tmp_path / "img/c1/1.jpg")
    write_image(tmp_path / "img/c2/1.jpg")
    write_image(tmp_path / "img/c2/2.jpg")
    for text in (*texts, "ann/c2/2.txt"):
        write_text(tmp_path / text, ONE_BOX)
    write_text(tmp_path / "classes.txt", "dog\n")
    assert pairs(tmp_path) == {"": [(image, "dog") for image in (*found, "img/c2/2.jpg")]}
    assert finding in said(read(tmp_path))


def test_images_without_a_text(tmp_path):
    one_image(tmp_path, ONE_BOX)
    write_image(tmp_path / "b.jpg")
    write_text(tmp_path / "c.txt", ONE_BOX)
    text = said(read(tmp_path))
    assert "images without a text, not taken (see --keep-unlabelled): 1" in text
    assert f"texts without an image, not taken: 1 (first: {tmp_path / 'c.txt'})" in text
    assert pairs(tmp_path) == {"": [("a.jpg", "dog")]}
    assert pairs(tmp_path, keep_unlabelled=True) == {"": [("a.jpg", "dog"), ("b.jpg",)]}


def test_labels_elsewhere_than_the_images(tmp_path):
    write_image(tmp_path / "photos" / "a.jpg")
    write_text(tmp_path / "set" / "a.txt", ONE_BOX)
    write_text(tmp_path / "set" / "classes.txt", "dog\n")
    found = pairs(tmp_path, tmp_path / "set", images_root=tmp_path / "photos")
    assert found == {"": [("photos/a.jpg", "dog")]}


@pytest.mark.parametrize(("orientation", "size"), [(None, (20, 10)), (6, (10, 20)), (3, (20, 10))])
def test_boxes_of_turned_images_are_of_the_turned_picture(tmp_path, orientation, size):
    labelled = read(one_image(tmp_path, "0 0.5 0.5 1 0.5\n", orientation=orientation))
    (image,) = labelled.splits[0].images
    assert (image.width, image.height) == size
    assert image.boxes[0].corners == (0, size[1] / 4, size[0], size[1] * 3 / 4)
    assert ("data.exif=apply" in said(labelled)) == (orientation is not None)


def test_keypoints_are_not_polygons(tmp_path):
    one_image(tmp_path, "0 0.5 0.5 0.5 0.4 0.1 0.1 0.9 0.9\n")
    write_text(tmp_path / "data.yaml", "train: .\nnames: [dog]\nkpt_shape: [2, 2]\n")
    assert boxes(read(tmp_path))[0] == pytest.approx(("dog", 5, 3, 15, 7))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [", "not readable as YAML"),
        ("train: nowhere\nnames: [dog]\n", "no image found.*nowhere was not found"),
        ("names: [dog]\n", "has no train, val or test"),
        ("train: .\nnames: nothing\n", "names is 'nothing', no list and no file"),
        ("train: .\nnames: {dog: 0}\n", "no.* class number"),
    ],
)
def test_bad_descriptions_are_named(tmp_path, yaml, message):
    one_image(tmp_path, ONE_BOX)
    write_text(tmp_path / "data.yaml", yaml)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / "data.yaml")
    assert str(caught.value).startswith(str(tmp_path / "data.yaml"))


def test_no_class_names(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "a.txt", ONE_BOX)
    with pytest.raises(DataError, match="no class names; add data.yaml or classes.txt, or give --"):
        read(tmp_path)
    assert read(tmp_path, classes=["dog", "cat"]).classes == ("dog", "cat")


def test_what_the_description_says_is_checked(tmp_path):
    one_image(tmp_path, ONE_BOX)
    write_text(tmp_path / "data.yaml", "train: .\nval: .\nnc: 5\nnames: [dog, cat, dog]\n")
    text = said(read(tmp_path))
    assert "it says nc 5, but names 3 classes" in text
    assert "train and val are the same images" in text
    assert "classes with the same name are joined" in text
    write_text(tmp_path / "coco.yaml", "train: .\nnames: [dog]\n")
    with pytest.raises(DataError, match=r"several descriptions \(coco.yaml, data.yaml\)"):
        read(tmp_path)


def with_a_neighbour(tmp_path, yaml):
    """A data set, and an image outside of its folder."""
    write_image(tmp_path / "set/images/train/a.jpg")
    write_text(tmp_path / "set/labels/train/a.txt", ONE_BOX)
    write_image(tmp_path / "other/secret.jpg")
    write_text(tmp_path / "other/secret.txt", ONE_BOX)
    write_text(tmp_path / "set/data.yaml", yaml.format(tmp_path / "other"))
    return tmp_path / "set"


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../other\nnames: [dog]",
        "train: {}\nnames: [dog]",
        "train: [images/train, ../other]\nnames: [dog]",
        "path: ../other\ntrain: .\nnames: [dog]",
        "train: list.txt\nnames: [dog]",
    ],
)
def test_what_is_outside_of_the_folder_is_refused_unless_it_is_allowed(tmp_path, yaml):
    root = with_a_neighbour(tmp_path, yaml)
    write_text(root / "list.txt", "images/train/a.jpg\n../other/secret.jpg\n")
    with pytest.raises(DataError) as error:
        read(root)
    assert_clean(error, root, "leads out of the folder", "add --allow-outside")
    for options in ({"allow_outside": True}, {"images_root": tmp_path / "other"}):
        images = [i.path for split in read(root, **options).splits for i in split.images]
        assert tmp_path / "other/secret.jpg" in images


def test_a_file_of_names_may_not_be_outside_either(tmp_path):
    root = with_a_neighbour(tmp_path, "train: images/train\nnames: ../other/secret.txt")
    with pytest.raises(DataError, match="leads out of the folder"):
        read(root)


def test_links_in_the_folder_are_followed(tmp_path):
    root = with_a_neighbour(tmp_path, "train: images/link\nnames: [dog]")
    (root / "images/link").symlink_to(tmp_path / "other")
    assert said(read(root)).count("leads out") == 0


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("path: [a]\ntrain: images/train\nnames: [dog]", "path is no text"),
        ("train: {a: b}\nnames: [dog]", "train is neither a path nor a list of paths"),
        ("train: [[images/train]]\nnames: [dog]", "train is neither a path nor a list of paths"),
        ("train: images/train\nnames: [[dog]]", "one of the names is empty or no text"),
        ("train: images/train\nnames: ['', cat]", "one of the names is empty or no text"),
        ("train: images/train\nnames: {0: dog, 00: cat}", "a class number twice"),
        (f"train: {'x' * 5000}\nnames: [dog]", "was not found"),
        ("train: images/train\nnames: &a {0: *a}", "refers to a value that holds it"),
    ],
)
def test_values_of_the_wrong_kind_are_named(tmp_path, yaml, problem):
    root = tmp_path / "set"
    write_image(root / "images/train/a.jpg")
    write_text(root / "labels/train/a.txt", ONE_BOX)
    write_text(root / "data.yaml", yaml)
    with pytest.raises(DataError) as error:
        read(root)
    assert_clean(error, root / "data.yaml", problem)
