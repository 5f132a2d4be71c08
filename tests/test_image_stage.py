"""`pretrain.py --stage image` as it is called, and all stages in a row."""

from __future__ import annotations

import json

import pytest
import torch

from aligndet.run_directory import RunDirectory
from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from tests.test_scripts import run_or_fail

pytestmark = pytest.mark.usefixtures("small_backbones")

IMAGE = {
    **{"crop_size": 32, "norm_groups": 2, "moco": {"queue": 16, "embedding_width": 16}},
    "simmim": {"patch_size": 8},
}


@pytest.fixture
def config(write_config, class_folders):
    """Write a config of the stage; returns its path."""

    def write(output_dir, method, **changes):
        probe = {"probe_train": str(class_folders / "train")}
        probe["probe_val"] = str(class_folders / "val")
        settings = {
            "data__batch_size": 4,
            "data__train__images": str(class_folders / "train"),
            "data__train__annotations": None,
            "evaluation__every": 2,
            "image": {**IMAGE, **probe, "method": method},
        }
        return write_config(output_dir, **{**settings, **changes})

    return write


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["moco_v2", "simmim", "supervised"])
def test_a_run_directory(tmp_path, config, script, capsys, method):
    script("pretrain", "--stage", "image", "--config", config(tmp_path / "run", method))
    files = {path.name for path in (tmp_path / "run").iterdir()}
    state = {"last.pt", "last.pt.1", ".lock"}
    pictures = {"reconstructions"} if method == "simmim" else set()
    named = {"config.yaml", "metrics.jsonl", "weights.pt", "results.json"}
    assert files == named | state | pictures
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    terms = {
        "moco_v2": {"loss_contrast", "retrieval", "cos_positive"},
        "simmim": {"loss_pixels", "mean_colour"},
        "supervised": {"loss_class", "accuracy"},
    }
    assert terms[method] <= steps[0].keys()
    (evaluation,) = (line for line in lines(tmp_path / "run") if "knn" in line)
    assert evaluation["step"] == 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    also = {"supervised": {"top1"}, "simmim": {"pixels_of_pictures"}}
    assert results.keys() == {"knn", "linear"} | also.get(method, set())
    content = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    assert content["stage"] == "image"
    assert content["config"] == {"backbone": "resnet18"}
    assert content["classes"] == (["blue", "red"] if method == "supervised" else [])
    assert ("fc.weight" in content["model"]) == (method == "supervised")
    backbone = build_backbone("resnet18")
    load_backbone_weights(backbone, tmp_path / "run" / "weights.pt")
    assert backbone.bn1.num_batches_tracked == 4
    out = capsys.readouterr().out
    assert "next: python pretrain.py --config CONFIG model.backbone_weights=" in out
    # The queue of 16 is longer than the list of 12 images.
    assert ("image.moco.queue is 16, but there are 12 images" in out) == (method == "moco_v2")


def test_simmim_draws_a_picture_at_each_evaluation_and_needs_no_labels(
    tmp_path, config, dataset, script
):
    image = {**IMAGE, "method": "simmim", "probe_train": None, "probe_val": None}
    images = {"data__train__images": str(dataset / "train"), "image": image}
    script("pretrain", "--stage", "image", "--config", config(tmp_path / "run", "simmim", **images))
    names = [path.name for path in sorted((tmp_path / "run" / "reconstructions").iterdir())]
    assert names == ["step_00000002.jpg", "step_00000004.jpg"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results.keys() == {"pixels_of_pictures"}


def test_all_three_stages_in_a_row(tmp_path, config, write_config, dataset, script):
    """Images of a COCO JSON, then boxes, then labels; the backbone is handed on unchanged."""
    annotations = {"data__train__annotations": str(dataset / "train.json")}
    images = {"data__train__images": str(dataset / "train")}
    first = config(tmp_path / "image", "moco_v2", **annotations, **images)
    script("pretrain", "--stage", "image", "--config", first)
    weights = {"model__backbone_weights": str(tmp_path / "image" / "weights.pt")}
    script("pretrain", "--config", write_config(tmp_path / "box", **weights))
    third = write_config(tmp_path / "fine", model__norm="frozen_bn", **weights)
    script("finetune", "--config", third, "--init", tmp_path / "box" / "weights.pt")
    image, box = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True)["model"]
        for name in ("image", "box")
    )
    assert all(torch.equal(value, box[f"backbone.{key}"]) for key, value in image.items())
    assert (tmp_path / "fine" / "results.json").exists()


@pytest.mark.parametrize(("method", "backbone"), [("moco_v2", "resnet18"), ("simmim", "swin_t")])
def test_a_killed_run_resumes_as_if_it_had_not_been(
    tmp_path, config, script, monkeypatch, method, backbone
):
    whole = config(tmp_path / "whole", method, model__backbone=backbone)
    script("pretrain", "--stage", "image", "--config", whole)
    cut = config(tmp_path / "cut", method, model__backbone=backbone)
    log, calls = RunDirectory.log, []

    def interrupted(self, values):
        calls.append(values)
        if len(calls) == 4:  # the line of step 3; the checkpoint is of step 2
            raise KeyboardInterrupt
        log(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            script("pretrain", "--stage", "image", "--config", cut)
    script("pretrain", "--stage", "image", "--config", cut)
    ends = [
        torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]
        for name in ("whole", "cut")
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    if method == "moco_v2":
        assert ends[0]["queue.oldest"] == 0  # 4 steps of 4 keys: once around
    losses = [[x["loss"] for x in lines(tmp_path / n) if "loss" in x] for n in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_the_checkpoint_of_another_stage(tmp_path, write_config, script, error_of):
    path = write_config(tmp_path / "run", image=IMAGE, data__batch_size=4)
    script("pretrain", "--stage", "image", "--config", path)
    message = error_of("pretrain", "--stage", "image", "--config", path, "seed=1")
    assert "was made with other settings (seed: 0 -> 1)" in message
    message = error_of("pretrain", "--config", path)
    said = "was made with another stage (image, not box); restore it, choose another"
    assert said in message


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("moco_v2", ["data.batch_size=3"], "data.batch_size is 3; BatchNorm splits it into 2"),
        ("moco_v2", ["data.batch_size=18"], "image.moco.queue is 16, less than the 18 images"),
        ("moco_v2", ["data.train.images=nowhere"], "nowhere: no such directory"),
        ("moco_v2", ["data.train.images=null"], "data.train.images is not set"),
        ("moco_v2", ["data.train.annotations=nowhere.json"], "nowhere.json: no such file"),
        ("moco_v2", ["image.probe_val=nowhere"], "nowhere: no such directory"),
        ("moco_v2", ["image.metod=moco_v2"], "unknown config key image.metod; did you mean image."),
        ("supervised", ["data.train.images={flat}"], "lies in no class folder"),
        ("supervised", ["model.backbone=resnet5"], "model.backbone is 'resnet5'"),
        ("supervised", ["model.backbone_weights=none.pth"], "none.pth"),
    ],
)
def test_mistakes_are_reported_before_training(
    tmp_path, config, dataset, error_of, method, arguments, message
):
    arguments = [argument.format(flat=dataset / "train") for argument in arguments]
    path = config(tmp_path / "run", method)
    assert message in error_of("pretrain", "--stage", "image", "--config", path, *arguments)
    assert not (tmp_path / "run").exists()


def test_two_ranks_of_torchrun(tmp_path, config):
    path = config(tmp_path / "run", "moco_v2", data__batch_size=2)
    out = run_or_fail(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("pretrain.py", "--stage", "image", "--config", path),
    )
    assert "4 of 4 images" in out
    assert json.loads((tmp_path / "run" / "results.json").read_text()).keys() == {"knn", "linear"}


def test_half_precision(tmp_path, config, script):
    path = config(tmp_path / "run", "moco_v2", amp="bf16", schedule__iterations=2)
    script("pretrain", "--stage", "image", "--config", path)
    half = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    path = config(tmp_path / "full", "moco_v2", schedule__iterations=2)
    script("pretrain", "--stage", "image", "--config", path)
    full = [line["loss"] for line in lines(tmp_path / "full") if "loss" in line]
    assert half[0] == pytest.approx(full[0], rel=0.2)
    assert half[0] != full[0]
