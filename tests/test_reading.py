"""The pages name files, functions and shapes that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import aligndet
from aligndet import adapters, box_domain
from aligndet.box_domain import BoxDomain
from aligndet.config import load_config
from aligndet.projectors import AnchorProjector
from data.views import collate_views
from models import build_detector
from models.fpn import FPN
from models.retinanet import RetinaNet, RetinaNetHead

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs")
    for page in folder.glob("*.md")
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def links(page):
    """Text and target of every link to a file of ours."""
    found = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [(text, target) for text, target in found if "://" not in target and target[0] != "#"]


def defined_names(path):
    """Functions, classes, methods and constants of a file; methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            names |= {f"{node.name}.{method.name}" for method in methods}
            names |= {method.name for method in methods}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for _, target in links(page):
        assert ((ROOT / page).parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_linked_names_are_defined_in_the_file(page):
    for text, target in links(page):
        name = re.fullmatch(r"`([\w.]+)`", text)
        if name and target.endswith(".py") and not name[1].endswith(".py"):
            path = (ROOT / page).parent / target
            assert name[1] in defined_names(path), f"{name[1]} is not in {target}"


def test_the_walk_names_enough_to_be_checked():
    names = [text for text, target in links("docs/reading.md") if target.endswith(".py")]
    assert len(names) > 30
    assert {"`fit`", "`BoxDomain.forward`", "`assign_by_iou`", "`find_pairs`"} <= set(names)


def test_the_groups_name_every_file():
    files = {path.stem for path in (ROOT / "aligndet").glob("[a-z]*.py")}
    assert set(re.findall(r"`(\w+)`", aligndet.__doc__)) == files
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = readme[readme.index("in three groups") : readme.index("| `train.py`")]
    assert set(re.findall(r"`(\w+)`", rows)) == files
    for package in ("data/proposals", "data/selective_search"):
        files = {p.stem for p in (ROOT / package).glob("*.py") if not p.stem.startswith("__")}
        text = (ROOT / package / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
        assert files <= set(re.findall(r"`(\w+)`", text)), package


def recorded(monkeypatch, owner, name, seen):
    """Keep what a function returns in its last call."""
    function = getattr(owner, name)

    def record(*args, **kwargs):
        seen[name] = function(*args, **kwargs)
        return seen[name]

    monkeypatch.setattr(owner, name, record)


def shape(tensor):
    return f"`{tuple(tensor.shape)}`"


def test_the_shapes_of_the_walk(monkeypatch):
    config = load_config(ROOT / "configs/demo_retinanet_pretrain.yaml", ["model.backbone_weights="])
    torch.manual_seed(0)
    detector = build_detector(config.model, num_classes=1)
    task = BoxDomain(detector, config.model.detector, config.box_domain)
    corners = torch.rand(16, 2) * torch.tensor([64.0, 48.0])
    boxes = torch.cat([corners, corners + 20 + 28 * torch.rand(16, 2)], dim=1)
    view = {"image": torch.randn(3, 96, 128), "boxes": boxes, "name": "a.jpg"}
    batch = collate_views([(view, view)] * config.data.batch_size)
    seen = {}
    recorded(monkeypatch, type(task.backbone), "forward", seen)
    maps = task.backbone(batch[0]["images"])
    for owner, name in (
        (FPN, "forward"), (type(task.online), "predictions"), (RetinaNet, "assign"),
        (RetinaNetHead, "deltas_from"), (box_domain, "find_pairs"), (box_domain, "instance_ids"),
        (adapters, "look_up"),
    ):  # fmt: skip
        recorded(monkeypatch, owner, name, seen)
    embedded = []
    task.online.projector.register_forward_hook(lambda m, args, output: embedded.append(output))
    task(batch)
    assert isinstance(task.online.projector, AnchorProjector)
    pairs = seen["find_pairs"]
    shapes = [
        shape(view["image"]), shape(boxes), shape(batch[0]["images"]),
        shape(batch[0]["image_sizes"]), *map(shape, maps), shape(seen["predictions"][1][0]),
        shape(seen["predictions"][1][-1]), shape(seen["assign"]), shape(seen["deltas_from"]),
        shape(pairs.samples[:, 0]), shape(embedded[0]), shape(pairs.pool),
    ]  # fmt: skip
    page = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
    walk = page[page.index("### 3.") : page.index("## The other detectors")]
    assert set(re.findall(r"`\([\d, ]+\)`", walk)) == set(shapes)
    assert torch.stack(seen["look_up"]).shape == seen["assign"].shape
    assert [ids.tolist() for ids in seen["instance_ids"]][-1][-1] == 127
    assert len(seen["predictions"][1]) == 5
