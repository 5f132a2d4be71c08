"""Files of weights and checkpoints with random damage, of a fixed seed, at every entry.

Each ends in one sentence that names the file, or the damage does not matter: all numbers are right.
"""

from __future__ import annotations

import json
import pickle
import random
import struct
from dataclasses import asdict

import pytest
import torch

from aligndet import checkpoint
from aligndet.export_backbone import torchvision_backbone
from aligndet.last_checkpoint import find_checkpoint
from aligndet.transfer import backbone_file, detector_file, model_like, read_detector
from data.coco import Categories
from models import build_detector
from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from tests.helpers.small_detectors import model_config

CONFIG = model_config("fcos", backbone="mobilenet_v2", options={"channels": 8, "num_convs": 1})
CASES = 20  # of each kind of file


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Files of each kind, and the weights in them."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    detector = build_detector(CONFIG, 2)
    backbone = build_backbone("mobilenet_v2", "bn").state_dict()
    classes = Categories((3, 7), ("red", "blue"))
    model = detector.state_dict()
    state = {"step": 2, "model": model, "optimizer": {}, "processes": 1}
    checkpoint.save(detector_file(detector, CONFIG, classes, (64, 96)), folder / "detector.pt")
    checkpoint.save(backbone_file(backbone, CONFIG, ()), folder / "backbone.pt")
    checkpoint.save({**state, "config": {"model": asdict(CONFIG)}}, folder / "last.pt")
    torch.save(backbone, folder / "zip.pth")
    torch.save(backbone, folder / "old.pth", _use_new_zipfile_serialization=False)
    arrays = {name: tensor.numpy() for name, tensor in backbone.items()}
    (folder / "arrays.pkl").write_bytes(pickle.dumps(arrays))
    (folder / "w.safetensors").write_bytes(safetensors(backbone))
    return folder, model, backbone


def safetensors(weights):
    header, data = {}, b""
    for name, tensor in weights.items():
        raw = tensor.contiguous().numpy().tobytes()
        kind = "F32" if tensor.is_floating_point() else "I64"
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def damaged(raw, random):
    """The bytes with one damage: cut, a flipped bit, a run of zeros, bytes that changed places."""
    raw = bytearray(raw)
    # Damage to the numbers is all alike; what describes them stands at the start and the end.
    place = random.choice((random.randrange(4000), len(raw) - 1 - random.randrange(4000)))
    place = random.choice((place, random.randrange(len(raw) - 600)))
    kind = random.choice(("cut", "bit", "bit", "zeros", "swap"))
    if kind == "cut":
        return bytes(raw[:place])
    if kind == "bit":
        raw[place] ^= 1 << random.randrange(8)
    elif kind == "zeros":
        raw[place : place + 64] = bytes(len(raw[place : place + 64]))
    else:
        raw[place : place + 8] = raw[place : place + 8][::-1]
    return bytes(raw)


def into_a_backbone(path):
    backbone = build_backbone("mobilenet_v2", "bn")
    load_backbone_weights(backbone, path)
    return backbone.state_dict()


# The file, whether its bytes are all covered by a checksum, and what reads it into weights.
ENTRIES = {
    "checkpoint": ("detector.pt", True, lambda path: read_detector(path).detector.state_dict()),
    "init": ("detector.pt", True, lambda path: model_like(path, {}) and None),
    "resume": (
        "last.pt",
        True,
        lambda path: find_checkpoint(str(path), path.parent).state["model"],
    ),
    "export": ("backbone.pt", True, torchvision_backbone),
    "backbone of ours": ("backbone.pt", True, into_a_backbone),
    "backbone": ("zip.pth", True, into_a_backbone),
    "backbone of before torch 1.6": ("old.pth", False, into_a_backbone),
    "backbone of arrays": ("arrays.pkl", False, into_a_backbone),
    "backbone of safetensors": ("w.safetensors", False, into_a_backbone),
}


def outcome(read, path):
    """What was read, and why not."""
    try:
        return read(path), None
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("entry", ENTRIES)
def test_damage_is_one_sentence_or_does_not_matter(good, tmp_path, entry):
    folder, model, backbone = good
    name, checked, read = ENTRIES[entry]
    expected = model if entry in ("checkpoint", "resume") else backbone
    raw = (folder / name).read_bytes()
    path, draw, messages = tmp_path / name, random.Random(7), []
    for _ in range(CASES):
        path.write_bytes(damaged(raw, draw))
        found, message = outcome(read, path)
        if message is not None:
            messages.append(message)
        elif checked and found is not None:
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert messages
    for message in messages:
        assert name in message
        assert "\n" not in message
