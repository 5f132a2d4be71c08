"""The picture of what was seen and what was made of it."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from aligndet.reconstructions import GREY, Reconstructions, as_bytes, compare
from aligndet.simmim import SimMIM
from aligndet.visual import MARGIN, TITLE_HEIGHT
from data.crops import RandomCrop
from data.image_folder import images_of_tree
from data.image_views import ImageViews
from data.normalise import normalise
from data.patch_masks import RandomPatches
from models.swin import SwinTransformer
from tests.helpers.narrow_backbones import NARROW

CPU = torch.device("cpu")


@pytest.fixture
def reconstructions(tmp_path, dataset):
    """Of a few images, by an untrained backbone."""
    torch.manual_seed(0)
    crop, hide = RandomCrop(64, 0.67, colour=False), RandomPatches(64, 32, 0.5)
    shutil.copytree(dataset / "train", tmp_path / "images")  # some are damaged
    images = ImageViews(images_of_tree(tmp_path / "images"), crop, hide=hide)
    task = SimMIM(SwinTransformer(NARROW)).train()
    return Reconstructions(task, images, tmp_path / "reconstructions", CPU, "none")


def test_a_picture_per_call_and_the_same_images_each_time(reconstructions):
    first, second = reconstructions(5), reconstructions(10)
    assert first == second
    assert first.keys() == {"pixels_of_pictures"}
    assert first["pixels_of_pictures"] > 0
    files = sorted(reconstructions.folder.iterdir())
    assert [file.name for file in files] == ["step_00000005.jpg", "step_00000010.jpg"]
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as picture:
        assert picture.size == (3 * (64 + MARGIN), TITLE_HEIGHT + 8 * (64 + MARGIN))
    assert reconstructions.task.training


def test_each_image_hides_patches_of_its_own(reconstructions):
    hidden = [tuple(sample["hidden"].flatten().tolist()) for sample in reconstructions.samples()]
    assert len(hidden) == 8
    assert len(set(hidden)) > 1


def test_images_that_cannot_be_read_are_left_out(reconstructions):
    files = [reconstructions.dataset.path(index) for index in range(8)]
    files[3].write_bytes(b"no image")
    assert len(reconstructions.samples()) == 7
    assert reconstructions(1)["pixels_of_pictures"] > 0
    for file in files:
        file.write_bytes(b"no image")
    assert reconstructions(2) == {}


def test_what_a_row_shows():
    """The image, grey where it is hidden, and the prediction there and only there."""
    truth = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    guess = torch.full((1, 3, 32, 32), 40, dtype=torch.uint8)
    hidden = torch.zeros(1, 32, 32, dtype=torch.bool)
    hidden[0, :16] = True
    picture = compare(normalise(truth), normalise(guess), hidden)
    top, bottom = TITLE_HEIGHT + 4, TITLE_HEIGHT + 28
    columns = [10 + number * (32 + MARGIN) for number in range(3)]
    grey = [[picture.getpixel((x, y))[0] for x in columns] for y in (top, bottom)]
    assert grey == [[200, GREY, 40], [200, 200, 200]]


def test_bytes_survive_normalising():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(as_bytes(normalise(pixels)), pixels)
    assert as_bytes(torch.full((1, 3, 1, 1), 9.0)).max() == 255
