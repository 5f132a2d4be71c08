"""`Predictor` from Python: every kind of image gives the same detections, others a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aligndet import checkpoint, dist
from aligndet.image_inputs import as_image
from aligndet.predict import Predictor
from aligndet.transfer import detector_file
from data.coco import Categories
from data.images import read_image
from models import build_detector
from models.detector import ModelConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
GREY = PIXELS[:, :, 0].copy()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with a detector of random weights, and a file that is not to be taken."""
    folder = tmp_path_factory.mktemp("run")
    config = ModelConfig(
        detector="fcos", backbone="resnet18", options={"channels": 32, "num_convs": 1}
    )
    content = detector_file(
        build_detector(config, 2), config, Categories((3, 7), ("a", "b")), (48, 64)
    )
    checkpoint.save(content, folder / "weights.pt")
    (folder / "weights_best.pt").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run)


def same(found, expected):
    assert set(found) == set(expected) == {"boxes", "scores", "labels"}
    return all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def expected(predictor):
    found = predictor(Image.fromarray(PIXELS))
    assert len(found["boxes"]) > 5
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    assert found["boxes"][:, 2].max() <= 60
    return found


COLOUR = {
    "array": PIXELS,
    "array that is not contiguous": np.ascontiguousarray(PIXELS[:, :, ::-1])[:, :, ::-1],
    "read-only array": np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape),
    "uint8 tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
    "float tensor": torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
    "double tensor": torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
    "half tensor": (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).half(),
    "tensor with gradient": (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
    "RGBA": Image.fromarray(np.dstack([PIXELS, GREY])),
    "RGBX": Image.fromarray(PIXELS).convert("RGBX"),
}


@pytest.mark.parametrize("kind", COLOUR)
def test_colour_of_every_kind(predictor, expected, kind):
    assert same(predictor(COLOUR[kind]), expected)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file(predictor, expected, tmp_path, kind):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    assert same(predictor(kind(tmp_path / "photo.png")), expected)


DEEP = GREY.astype(np.uint16) * 257
GREYS = {
    "L": Image.fromarray(GREY),
    "array": GREY,
    "array of one channel": GREY[:, :, None],
    "three channels": np.repeat(GREY[:, :, None], 3, axis=2),
    "uint8 tensor": torch.from_numpy(GREY)[None],
    "float tensor": torch.from_numpy(GREY)[None] / 255,
    "LA": Image.fromarray(GREY).convert("LA"),
    "P": Image.fromarray(GREY).convert("P"),
    "I;16": Image.fromarray(DEEP),
    "I;16B": Image.frombytes("I;16B", (60, 40), DEEP.astype(">u2").tobytes()),
    "I": Image.fromarray(DEEP.astype(np.int32)),
    "F": Image.fromarray(GREY.astype(np.float32) / 255),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_of_every_kind(predictor, kind):
    assert same(predictor(GREYS[kind]), predictor(GREYS["three channels"]))


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "LAB", "La"])
def test_other_modes_are_converted(mode):
    image = Image.new("RGB", (9, 8), (200, 30, 90))
    made = {"LAB": (100, 20, 30), "La": (50, 90)}  # nothing that Pillow converts other modes to
    image = Image.new(mode, (9, 8), made[mode]) if mode in made else image.convert(mode)
    assert as_image(image).mode == "RGB"
    assert as_image(image).size == (9, 8)


def test_deep_images_follow_the_rule_of_files(tmp_path):
    for kind in ("I;16", "I", "F"):
        GREYS[kind].save(tmp_path / "deep.tif")
        assert as_image(GREYS[kind]).tobytes() == read_image(tmp_path / "deep.tif").tobytes()


WRONG = {
    "is a list; give a path": [[0, 0], [0, 0]],
    "is a NoneType": None,
    "is a bytes": b"photo",
    "array of float64 (40, 60, 3); arrays must be uint8": PIXELS / 255,
    "array of bool": GREY > 9,
    "array of uint16": DEEP,
    "array of uint8 (3, 40, 60): channels come last in arrays": PIXELS.transpose(2, 0, 1),
    "array of uint8 (40, 60, 4); give": np.dstack([PIXELS, GREY]),
    "array of uint8 (60,); give": GREY[0],
    "array of uint8 (0, 60, 3); give": PIXELS[:0],
    "tensor of torch.uint8 (40, 60, 3); give": torch.from_numpy(PIXELS),
    "tensor of torch.uint8 (40, 60); give": torch.from_numpy(GREY),
    "tensor of torch.float32 (1, 3, 4, 5): a batch; give one image": torch.zeros(1, 3, 4, 5),
    "(3, 4, 5) with values outside 0..1; divide": torch.full((3, 4, 5), 9.0),
    "(3, 4, 6) with values outside 0..1; divide": torch.full((3, 4, 6), -0.1),
    "(3, 4, 7) with values outside 0..1; divide": torch.full((3, 4, 7), torch.nan),
    "tensor of torch.int64 (3, 4, 5); give": torch.zeros(3, 4, 5, dtype=torch.int64),
    "tensor of torch.float32 (3, 0, 5); give": torch.zeros(3, 0, 5),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_images_are_one_sentence(predictor, words):
    with pytest.raises(ValueError, match="the image is ") as raised:
        predictor(WRONG[words])
    message = str(raised.value)
    assert words in message
    assert "\n" not in message


def test_a_missing_file_is_named(predictor):
    with pytest.raises(ValueError, match="none.png: image is missing"):
        predictor("none.png")


def test_a_run_and_its_file_are_the_same(run, predictor, expected):
    assert predictor.categories.names == ("a", "b")
    assert same(Predictor(run / "weights.pt", torch.device("cpu"))(PIXELS), expected)
    assert same(Predictor(str(run), "cpu")(PIXELS), expected)


def test_pictures_of_every_kind_of_image(predictor, expected):
    picture = predictor.draw(PIXELS, expected, threshold=0.0)
    assert picture.size == (60, 40)
    assert picture.tobytes() != Image.fromarray(PIXELS).tobytes()
    nothing = predictor.draw(COLOUR["uint8 tensor"], expected, threshold=1.0)
    assert nothing.tobytes() == Image.fromarray(PIXELS).tobytes()


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no weights.pt; give --checkpoint or --weights"):
        Predictor(tmp_path)


def test_other_devices_are_refused(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'gpu'; set it to auto, cpu or cuda"):
        Predictor(run, "gpu")
    with pytest.raises(ValueError, match="PyTorch finds no GPU"):
        Predictor(run, "cuda")
    assert Predictor(run).device == torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dist.choose_device("auto", 2) == torch.device("cuda", 2)
    assert dist.choose_device("cpu") == torch.device("cpu")
