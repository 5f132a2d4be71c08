"""ImageNet weights classify real photographs through our backbone and its classifier.

Needs photographs and weights that are not part of the project: `ALIGNDET_DATA` names a folder
with `weights/mobilenet_v2_imagenet.pth`, `unlabelled/images/imagenet_WNID_CLASS.jpg` and
`coco-mini/` in COCO's layout. Without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import torchvision

from data.crops import CentreCrop
from data.images import read_image
from data.normalise import normalise
from data.transforms import pil_to_tensor
from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from models.classifier import Classifier

DATA = Path(os.environ.get("ALIGNDET_DATA", "nowhere"))
WEIGHTS = DATA / "weights" / "mobilenet_v2_imagenet.pth"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="ALIGNDET_DATA has no weights")

CLASSES = [c.lower() for c in torchvision.models.MobileNet_V2_Weights.DEFAULT.meta["categories"]]
# COCO's classes that have the same name in ImageNet, or are part of a longer one.
SHARED = [
    *("banana", "bear", "broccoli", "bus", "elephant", "keyboard", "laptop", "microwave"),
    *("orange", "pizza", "refrigerator", "toilet", "umbrella", "zebra"),
]


@pytest.fixture(scope="module")
def classifier():
    backbone = build_backbone("mobilenet_v2")
    load_backbone_weights(backbone, WEIGHTS)
    weights = torch.load(WEIGHTS, weights_only=True)
    result = Classifier(backbone, len(CLASSES)).eval()
    names = ("weight", "bias")
    result.linear.load_state_dict({name: weights[f"classifier.1.{name}"] for name in names})
    return result


@torch.no_grad()
def logits_of(classifier, images):
    return torch.cat(
        [classifier(normalise(torch.stack(images[i : i + 16]))) for i in range(0, len(images), 16)]
    )


def right(logits, fits):
    """Percent of rows whose best class, and one of whose best five, pass `fits(row, class)`."""
    hits = torch.tensor(
        [[fits(i, CLASSES[k]) for k in best] for i, best in enumerate(logits.topk(5).indices)]
    )
    return 100 * hits[:, 0].float().mean().item(), 100 * hits.any(dim=1).float().mean().item()


def object_crops():
    """Squares around objects of at least 96 px, and the names of their classes."""
    folder, views, names = DATA / "coco-mini", [], []
    for split in ("train", "val"):
        content = json.loads((folder / "annotations" / f"{split}_coco80.json").read_text())
        class_of = {c["id"]: c["name"] for c in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            name = class_of[entry["category_id"]]
            if name not in SHARED or entry["iscrowd"] or min(w, h) < 96:
                continue
            image = read_image(folder / "images" / split / files[entry["image_id"]])
            left, top, side = x + w / 2 - max(w, h) / 2, y + h / 2 - max(w, h) / 2, max(w, h)
            box = (max(0, left), max(0, top), left + side, top + side)
            box = (*box[:2], min(image.width, box[2]), min(image.height, box[3]))
            views.append(pil_to_tensor(image.crop(box).resize((224, 224))))
            names.append(name)
    return views, names


def test_photographs_of_imagenets_classes(classifier):
    files = sorted((DATA / "unlabelled" / "images").glob("imagenet_*.jpg"))
    assert len(files) > 900
    letters = [re.sub("[^a-z]", "", file.stem.split("_", 2)[2].lower()) for file in files]
    views = [CentreCrop(224)(read_image(file)) for file in files]
    top1, top5 = right(
        logits_of(classifier, views), lambda i, name: re.sub("[^a-z]", "", name) == letters[i]
    )
    print(f"\n{len(files)} photographs: top-1 {top1:.1f} %, top-5 {top5:.1f} %")
    assert top1 > 70
    assert top5 > 90


def test_object_crops(classifier):
    """Also: an untrained network finds next to nothing, and torchvision's model agrees."""
    views, names = object_crops()
    logits = logits_of(classifier, views)
    top1, top5 = right(logits, lambda i, name: names[i] in name)
    print(f"\n{len(names)} object crops: top-1 {top1:.1f} %, top-5 {top5:.1f} %")
    assert len(names) > 100
    assert top1 > 50
    assert top5 > 75
    untrained = Classifier(build_backbone("mobilenet_v2"), len(CLASSES)).eval()
    assert right(logits_of(untrained, views), lambda i, name: names[i] in name)[1] < 10
    theirs = torchvision.models.mobilenet_v2()
    theirs.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    expected = logits_of(theirs.eval(), views[:16])
    torch.testing.assert_close(logits[:16], expected, rtol=1e-3, atol=1e-3)
