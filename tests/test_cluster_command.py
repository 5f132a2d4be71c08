"""The command that writes clusters: from images to labels of views, resumed, and refused."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
import torch
from PIL import Image

from aligndet import clusters
from aligndet.cluster_command import main
from aligndet.cluster_options import read_request
from data.build import DataConfig, SplitConfig, build_two_views
from data.shapes import main as write_shapes
from data.views import SampleKey
from models.backbone import build_backbone
from tests.helpers import proposal_command


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Folder with images/train of the built-in dataset, their proposals.json, and weights.pt."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(["--output", str(folder), "--train", "6", "--val", "1"])
    assert (
        proposal_command.run(
            *("--images", folder / "images" / "train", "--output", folder / "proposals.json"),
            *("--search", "fast", "--workers", 1),
        )
        == 0
    )
    torch.manual_seed(0)
    torch.save(build_backbone("resnet18").state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def options(shapes):
    """Options of a small run; given ones take the place of these, None leaves one out."""

    def make(output, *more, **changes):
        given = {
            "images": shapes / "images" / "train",
            "proposals": shapes / "proposals.json",
            "backbone": "resnet18",
            "weights": shapes / "weights.pt",
            "output": output,
            "clusters": 5,
            **changes,
        }
        words = [w for k, v in given.items() if v is not None for w in (f"--{k}", str(v))]
        return [
            *words, "device=cpu", "data.workers=0", "data.short_sides=[64]",
            "box_domain.max_proposals=6", *map(str, more),
        ]  # fmt: skip

    return make


def views_of(shapes, proposals, with_masks=False):
    split = SplitConfig(images=str(shapes / "images" / "train"), proposals=str(proposals))
    data = DataConfig(train=split, short_sides=(64,))
    return build_two_views(data, 6, with_masks)


@pytest.mark.parametrize("kind", ["json", "packed"])
def test_pre_training_reads_what_it_writes(shapes, options, tmp_path, capsys, kind):
    output = tmp_path / "new" / "clusters.json"
    assert main(options(output, format=kind)) == 0
    assert "in 5 of 5 clusters" in capsys.readouterr().out
    before, after = views_of(shapes, shapes / "proposals.json"), views_of(shapes, output)
    assert (before.num_clusters, after.num_clusters) == (None, 5)
    found = set()
    for index in range(6):
        key = SampleKey(index, "s")
        for old, new in zip(before[key], after[key], strict=True):
            assert torch.equal(old["image"], new["image"])
            assert torch.equal(old["boxes"], new["boxes"])
            assert len(new["labels"]) == len(new["boxes"]) > 0
            found |= set(new["labels"].tolist())
    assert found == {0, 1, 2, 3, 4}
    assert [file.name for file in output.parent.iterdir()] == ["clusters.json"]


def test_the_file(shapes, options, tmp_path):
    output = tmp_path / "clusters.json"
    main(options(output, "box_domain.max_proposals=null", seed=3))
    found, given = (json.loads(p.read_text()) for p in (output, shapes / "proposals.json"))
    assert found["images"] == given["images"]
    assert found["categories"] == [{"id": k, "name": f"cluster {k}"} for k in range(1, 6)]
    assert {a["category_id"] for a in found["annotations"]} == {1, 2, 3, 4, 5}
    for annotation in found["annotations"]:
        annotation["category_id"] = 1
    assert found["annotations"] == given["annotations"]
    made = found["info"]["clusters"]
    assert (made["backbone"], made["clusters"], made["seed"]) == ("resnet18", 5, 3)
    assert made["features"]["levels"] == ["c4", "c5"]
    assert found["info"]["images_read_with"] == given["info"]["images_read_with"]


@pytest.mark.parametrize("kind", ["json", "packed"])
def test_masks_are_kept(shapes, options, tmp_path, kind):
    """Every second box has one: a rectangle of its own size."""
    content = json.loads((shapes / "proposals.json").read_text())
    for annotation in content["annotations"][::2]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    given, output = tmp_path / "given.json", tmp_path / "clusters.json"
    given.write_text(json.dumps(content))
    assert main([*options(output, proposals=given, format=kind), "--masks"]) == 0
    old, new = (views_of(shapes, path, with_masks=True).source for path in (given, output))
    for before, after in zip(old.records, new.records, strict=True):
        masks = before.masks[: len(after.boxes)]
        assert list(masks) == list(after.masks)
        assert any(masks)
        assert not all(masks)


def test_the_same_from_a_config(shapes, options, tmp_path, write_config):
    main(options(tmp_path / "options.json"))
    config = write_config(
        tmp_path / "run",
        data__root=str(shapes),
        data__train__images="images/train",
        data__train__proposals="proposals.json",
        data__max_side=1333,
        model__backbone_weights=str(shapes / "weights.pt"),
        box_domain__max_proposals=6,
    )
    words = ("--config", config, "--output", tmp_path / "config.json", "--clusters", 5)
    assert main(list(map(str, words))) == 0
    contents = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("options", "config")]
    assert contents[0] == contents[1]


def test_options_before_the_config(shapes, tmp_path, write_config, monkeypatch):
    """Their paths start from the working directory, not from data.root."""
    monkeypatch.chdir(tmp_path)
    config = write_config(
        tmp_path / "run", data__root="/elsewhere", model__backbone_weights="one.pt"
    )
    request = read_request(
        ["--config", str(config), "--images", "mine", "--weights", "two.pt", "--output", "o.json"]
    )
    assert request.images == str(tmp_path / "mine")
    assert (request.weights, request.settings.features.short_side) == ("two.pt", 64)


def test_the_same_command_computes_nothing_again(options, tmp_path, monkeypatch, capsys):
    output, sheet = tmp_path / "clusters.json", tmp_path / "sheet.jpg"
    main(options(output))
    content = output.read_text()
    monkeypatch.setattr(clusters, "collect_sample", None)
    assert main(options(output, sheet=sheet)) == 0
    assert "already" in capsys.readouterr().out
    assert output.read_text() == content
    assert Image.open(sheet).height > 300  # of the clusters in the file
    monkeypatch.undo()
    main(options(output, seed=1))
    assert json.loads(output.read_text())["info"]["clusters"]["seed"] == 1
    output.write_text("{")  # not what the command wrote
    assert main(options(output)) == 0
    assert output.read_text() == content


def test_a_killed_command_goes_on_and_leaves_nothing_half_written(options, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.json", tmp_path / "clusters.json"
    main(options(whole, sample=10))
    monkeypatch.setattr(clusters, "TOGETHER", 2)
    real = clusters.assign_rest

    def dies(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(clusters, "assign_rest", dies)
    with pytest.raises(KeyboardInterrupt):
        main(options(output, sample=10))
    assert not output.exists()
    assert (tmp_path / ".clusters.json.partial.pt").exists()
    monkeypatch.setattr(clusters, "assign_rest", real)
    monkeypatch.setattr(clusters, "fit", None)  # it has been done
    assert main(options(output, sample=10)) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clusters.json", "whole.json"]


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"images": None}, (), "data.train.images is not set; give --images DIR"),
        ({"proposals": None}, (), "data.train.proposals is not set; give --proposals FILE"),
        ({"weights": None}, (), "model.backbone_weights is not set; give --weights FILE"),
        ({"proposals": "none.json"}, (), "none.json: no such file"),
        ({"weights": "none.pt"}, (), "none.pt: no such file"),
        ({"clusters": 37}, (), "36 boxes cannot make 37 clusters; ask for fewer"),
        ({"clusters": 0}, (), "clusters is 0; it must be at least 1"),
        ({"levels": "C6"}, (), "levels is 'c6'; give some of c2, c3, c4, c5"),
        ({"sheet": "sheet.bmp"}, (), "give a name that ends in .jpg or .png"),
        ({}, ("data.batchsize=3",), "unknown config key data.batchsize; did you mean"),
        ({}, ("device=tpu",), "device is 'tpu'; set it to auto, cpu or cuda"),
    ],
)
def test_bad_input_is_one_sentence(options, tmp_path, capsys, changes, more, words):
    assert main(options(tmp_path / "o.json", *more, **changes)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "o.json").exists()


def test_inputs_are_not_overwritten(shapes, options, capsys):
    assert main(options(shapes)) == 1
    assert "is a directory; give --output the name of a file" in capsys.readouterr().err
    assert main(options(shapes / "proposals.json")) == 1
    assert "would overwrite --proposals" in capsys.readouterr().err
    inside = shapes / "images" / "train" / "sheet.jpg"
    assert main(options(shapes / "o.json", sheet=inside)) == 1
    assert "lies in the folder of the images" in capsys.readouterr().err


def test_the_door(options, tmp_path, monkeypatch):
    """`python -m data.clusters`."""
    output = tmp_path / "clusters.json"
    monkeypatch.setattr(sys, "argv", ["clusters", *options(output)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("data.clusters", run_name="__main__")
    assert ended.value.code == 0
    assert output.exists()
