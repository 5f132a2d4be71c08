"""Which images a backbone learns from, and their classes; torchvision's ImageFolder as oracle."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from data.errors import DataError
from data.image_folder import images_of_classes, images_of_coco, images_of_tree


@pytest.fixture
def folder(tmp_path):
    """Six images of three classes, one of them deeper in the tree."""
    for name in ("cat/1.png", "cat/deep/2.png", "Dog/1.png", "ant/b.png", "ant/a.png", "ant/c.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    (tmp_path / "tree" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "tree"


def test_classes_and_labels_equal_torchvisions(folder):
    ours, theirs = images_of_classes(folder), ImageFolder(folder)
    assert ours.classes == tuple(theirs.classes) == ("Dog", "ant", "cat")
    expected = {path: label for path, label in theirs.samples}
    found = {str(folder / file): k for file, k in zip(ours.files, ours.labels, strict=True)}
    assert found == expected
    assert len(ours) == 6


def test_what_is_left_out_is_noted(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (4, 3)).save(folder / ".ipynb_checkpoints" / "1-checkpoint.png")
    for images in (images_of_tree(folder), images_of_classes(folder)):
        assert images.notes == ("left out: 1 .txt, 1 hidden",)
        assert len(images) == 6
    assert images.classes == ("Dog", "ant", "cat")


def test_a_tree_has_no_labels(folder):
    images = images_of_tree(folder)
    assert images.files == images_of_classes(folder).files
    assert (images.classes, images.labels) == ((), ())


@pytest.mark.parametrize("rest", [{}, {"annotations": [], "categories": []}])
def test_images_of_a_coco_json_in_its_order(folder, tmp_path, rest):
    names = ["cat/1.png", "ant/c.png"]
    entries = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    (tmp_path / "list.json").write_text(json.dumps({"images": entries, **rest}))
    images = images_of_coco(folder, tmp_path / "list.json")
    assert images.files == tuple(names)
    assert images.labels == ()


def test_names_of_a_coco_json_written_elsewhere(folder, tmp_path):
    """Backslashes and another folder before the name; an image listed twice is taken once."""
    names = ["images\\cat\\1.png", "images\\ant\\c.png", "images/cat/1.png"]
    entries = [{"file_name": name} for name in names]
    (tmp_path / "list.json").write_text(json.dumps({"images": entries}), encoding="utf-8-sig")
    images = images_of_coco(folder, tmp_path / "list.json")
    assert images.files == ("cat/1.png", "ant/c.png")


def test_an_image_outside_the_classes(folder):
    Image.new("RGB", (4, 3)).save(folder / "stray.png")
    with pytest.raises(DataError, match="stray.png: lies in no class folder; put"):
        images_of_classes(folder)
    assert "stray.png" in images_of_tree(folder).files


def test_a_single_class(folder):
    (folder / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match="cat: has images of only one class, 'deep'; give"):
        images_of_classes(folder / "cat")


def test_a_truncated_image_is_named(folder):
    path = folder / "ant" / "b.png"
    path.write_bytes(path.read_bytes()[:40])
    for read in (images_of_tree, images_of_classes):
        with pytest.raises(DataError, match="b.png: image is truncated"):
            read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "list.json: not a COCO JSON, its top level is not an object; convert"),
        ({"images": {}}, "list.json: not a COCO JSON, it has no list 'images'"),
        ({"images": []}, "list.json: lists no image; give"),
        ({"images": [{"id": 1}]}, "an entry of 'images' has no 'file_name'"),
        ({"images": ["a.png"]}, "an entry of 'images' has no 'file_name'"),
        ({"images": [{"file_name": "none.png"}]}, "none.png: image is missing"),
    ],
)
def test_a_malformed_json(folder, tmp_path, content, message):
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        images_of_coco(folder, tmp_path / "list.json")
