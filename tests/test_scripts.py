"""The scripts as they are called: a whole pipeline by subprocess, and what its files are for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import finetune
from aligndet.box_domain import BoxDomain
from aligndet.config import load_config
from aligndet.evaluate import AP_KEYS
from aligndet.run_directory import RunDirectory
from data.build import build_val
from models import build_backbone, build_detector
from tests.helpers.oracle_detector import OracleDetector

ROOT = Path(__file__).parent.parent
STATE = ("last.pt", "last.pt.1", ".lock")  # of a run
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(*command):
    """A command from the repository root; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def run_or_fail(*command):
    code, stdout, stderr = run(*command)
    assert code == 0, stderr
    return stdout


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, write_config, dataset):
    """Pre-training by torchrun on two ranks, fine-tuning, evaluation and prediction."""
    folder = tmp_path_factory.mktemp("pipeline")
    pretrain = write_config(
        folder / "pretrain",
        data__batch_size=1,
        box_domain__across_ranks=True,
        box_domain__samples=100_000,
    )
    finetune = write_config(folder / "finetune", evaluation__every=2)
    weights = folder / "pretrain" / "weights.pt"
    fine_tuned = folder / "finetune" / "weights.pt"
    out = {
        "pretrain": run_or_fail(*TORCHRUN, "pretrain.py", "--config", pretrain),
        "finetune": run_or_fail("finetune.py", "--config", finetune, "--init", weights),
        "evaluate": run_or_fail(
            *("finetune.py", "--config", finetune, "--eval-only", "--checkpoint", fine_tuned),
            f"output_dir={folder / 'evaluate'}",
        ),
        "predict": run_or_fail(
            *("-m", "aligndet.predict", "--weights", folder / "finetune"),
            *("--images", dataset / "val", "--annotations", dataset / "val.json"),
            *("--output", folder / "predict", "--device", "cpu", "--json-threshold", "0"),
        ),
    }
    return folder, out


def lines(run_directory):
    return [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]


def test_pretraining_writes_a_run_directory(pipeline, write_config):
    folder, out = pipeline
    files = {path.name for path in (folder / "pretrain").iterdir()}
    assert files == {"config.yaml", "metrics.jsonl", "weights.pt", *STATE}
    assert load_config(folder / "pretrain" / "config.yaml") == load_config(folder / "pretrain.yaml")
    written = lines(folder / "pretrain")
    assert [line["step"] for line in written] == [1, 2, 3, 4]
    expected = {"step", "epoch", "loss", "loss_contrast", "loss_box", "loss_centerness", "lr"}
    assert expected | {"images_per_second", "contrast_minus_floor", "momentum"} <= written[0].keys()
    said = "model.backbone_weights is not set: the backbone is random; of its 5 stages, 5 do not"
    assert out["pretrain"].count(said) == 1  # by rank 0
    assert out["pretrain"].count("next: python finetune.py --config CONFIG --init") == 1


def test_torchrun_equals_one_process(pipeline, script, tmp_path):
    folder, _ = pipeline
    overrides = ("data.batch_size=2", f"output_dir={tmp_path / 'one'}")
    script("pretrain", "--config", folder / "pretrain.yaml", *overrides)
    one = torch.load(tmp_path / "one" / "weights.pt", weights_only=True)
    two = torch.load(folder / "pretrain" / "weights.pt", weights_only=True)
    assert one["config"] == two["config"]
    assert one["model"].keys() == two["model"].keys()
    config = load_config(folder / "pretrain.yaml")
    torch.manual_seed(config.seed)
    task = BoxDomain(build_detector(config.model, 1), config.model.detector, config.box_domain)
    start, most = task.weights(), 0.0
    # The scripts train in float32 (test_two_ranks.py compares in float64), where one image and two
    # round differently. Where this flips a ReLU, a gradient gains or loses one of the hundred or so
    # cells it comes from; a mistake in the ranks' shares changes it by tens of percent.
    for name, tensor in one["model"].items():
        moved = (tensor - start[name]).double().norm().item()
        error = (two["model"][name] - tensor).double().norm().item()
        assert error <= 0.05 * moved + 1e-6 * tensor.double().norm().item(), name
        most = max(most, moved)
    assert most > 1e-2


def test_finetuning_writes_a_run_directory(pipeline):
    folder, out = pipeline
    files = {path.name for path in (folder / "finetune").iterdir()}
    assert files == {
        *("config.yaml", "metrics.jsonl", "manifest.json"),
        *("weights.pt", "weights_best.pt", *STATE),
        *("results.json", "per_class.json", "detections.json"),
    }
    written = lines(folder / "finetune")
    trained = [line for line in written if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert {"loss_class", "loss_box", "loss_centerness", "lr"} <= trained[0].keys()
    scored = [line for line in written if "AP" in line]
    assert scored[0]["step"] == 2
    assert set(AP_KEYS) <= scored[0].keys()
    manifest = json.loads((folder / "finetune" / "manifest.json").read_text())
    assert manifest["source"] == str(folder / "pretrain" / "weights.pt")
    assert {name.rsplit(".", 1)[0] for name in manifest["fresh"]} == {"head.cls_logits"}
    assert {name.split(".")[0] for name in manifest["dropped"]} == {"projector"}
    assert "projector (4)" in out["finetune"]
    assert "head.cls_logits (2)" in out["finetune"]


def test_evaluation_alone_gives_the_same_scores(pipeline):
    folder, _ = pipeline
    after_training = json.loads((folder / "finetune" / "results.json").read_text())
    alone = json.loads((folder / "evaluate" / "results.json").read_text())
    assert alone == after_training
    assert tuple(alone) == AP_KEYS
    assert (folder / "evaluate" / "per_class.json").exists()
    found = [folder / run / "detections.json" for run in ("finetune", "evaluate")]
    own, again = (json.loads(path.read_text()) for path in found)
    assert len(own) == len(again)  # their last bits depend on how the weights lie in memory


def test_detections_are_a_results_file_of_the_annotations(pipeline, dataset):
    folder, out = pipeline
    truth = COCO(str(dataset / "val.json"))
    scorer = COCOeval(truth, truth.loadRes(str(folder / "finetune/detections.json")), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    results = json.loads((folder / "finetune/results.json").read_text())
    assert results["AP"] == pytest.approx(100 * scorer.stats[0])
    per_class = json.loads((folder / "finetune/per_class.json").read_text())
    assert set(per_class) == {"red", "blue"}
    assert sum(per_class.values()) / 2 == pytest.approx(results["AP"])
    assert "step 2: AP " in out["finetune"]


def test_the_best_weights_are_those_of_the_highest_ap(pipeline, write_config, script, tmp_path):
    """Scored alone, the file gives the AP that was measured when it was written."""
    folder, _ = pipeline
    best = folder / "finetune/weights_best.pt"
    measured = [line["AP"] for line in lines(folder / "finetune") if "AP" in line]
    measured.append(json.loads((folder / "finetune/results.json").read_text())["AP"])
    assert torch.load(best, weights_only=True)["AP"] == max(measured)
    path = write_config(tmp_path / "run")
    script("finetune", "--config", path, "--eval-only", "--checkpoint", best)
    assert json.loads((tmp_path / "run/results.json").read_text())["AP"] == max(measured)


def test_evaluation_alone_keeps_the_results_of_the_run(pipeline, write_config, script, tmp_path):
    """Its weights are another run's, so results.json would no longer be that of weights.pt."""
    folder, _ = pipeline
    path = write_config(tmp_path / "other", schedule__iterations=1)
    script("finetune", "--config", path)
    own = (tmp_path / "other/results.json").read_text()
    weights = folder / "finetune/weights.pt"
    script("finetune", "--config", path, "--eval-only", "--checkpoint", weights)
    assert (tmp_path / "other/results.json").read_text() == own
    expected = json.loads((folder / "finetune/results.json").read_text())
    assert json.loads((tmp_path / "other/evaluation.json").read_text()) == expected
    assert (tmp_path / "other/evaluation_detections.json").exists()


def test_init_needs_no_file_of_the_backbone(pipeline, write_config, script, error_of, tmp_path):
    """It holds the backbone; the file that pre-training took it from may be on another machine."""
    weights = pipeline[0] / "pretrain/weights.pt"
    missing = tmp_path / "gone.pth"
    path = write_config(tmp_path / "run", model__backbone_weights=str(missing))
    script("finetune", "--config", path, "--init", weights)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert not [name for name in manifest["fresh"] if name.startswith("backbone.")]
    message = error_of(
        *("finetune", "--config", path, "--init", weights, f"output_dir={tmp_path / 'other'}"),
        "transfer.leave_out=[backbone.layer4.]",
    )
    assert str(missing) in message


def test_prediction_writes_pictures_and_coco_json(pipeline, dataset):
    folder, _ = pipeline
    content = json.loads((folder / "predict" / "detections.json").read_text())
    names = [entry["file_name"] for entry in content["images"]]
    assert names == sorted(path.name for path in (dataset / "val").iterdir())
    assert [c["id"] for c in content["categories"]] == [3, 7]
    ids = {entry["id"] for entry in json.loads((dataset / "val.json").read_text())["images"]}
    assert content["annotations"]
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        assert entry["image_id"] in ids
        assert entry["category_id"] in (3, 7)
        assert 0 < entry["score"] <= 1
        assert min(x, y) >= -1e-3
        assert x + w <= 96.001
        assert y + h <= 64.001
    for name in names:
        with Image.open(folder / "predict" / f"{name}.jpg") as picture:
            assert picture.size == (96, 64)


def test_finetuning_without_init_starts_from_the_backbone(tmp_path, write_config, script):
    torch.manual_seed(3)
    backbone = build_backbone("resnet18").state_dict()
    torch.save({**backbone, "fc.weight": torch.zeros(2, 2)}, tmp_path / "resnet18.pth")
    path = write_config(
        tmp_path / "run",
        model__backbone_weights=str(tmp_path / "resnet18.pth"),
        model__frozen_stages=5,
        schedule__iterations=1,
    )
    script("finetune", "--config", path)
    model = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)["model"]
    assert all(torch.equal(model[f"backbone.{name}"], value) for name, value in backbone.items())


def test_an_error_of_a_real_process_is_one_line(tmp_path, write_config):
    path = write_config(tmp_path / "run")
    code, _, stderr = run("finetune.py", "--config", path, "optim.lrr=1")
    assert code == 1
    assert stderr == "error: unknown config key optim.lrr; did you mean optim.lr?\n"


# Each of these breaks something and returns further arguments: given the content of train.json, a
# folder to write into, and the folder of the dataset.


def test_init_of_another_architecture_is_refused(pipeline, write_config, error_of, tmp_path):
    folder, _ = pipeline
    weights = folder / "pretrain" / "weights.pt"
    path = write_config(tmp_path / "run", model__backbone="resnet34")
    message = error_of("finetune", "--config", path, "--init", weights)
    assert f"{weights}: model.backbone=resnet34 is given, but the file's is resnet18;" in message
    path = write_config(tmp_path / "run", model__options={"channels": 64, "num_convs": 1})
    message = error_of("finetune", "--config", path, "--init", weights.parent)
    assert "model.options.channels=64 is given, but the file's is 32; leave the key out" in message


def test_init_says_what_the_model_is(pipeline, write_config, script, tmp_path):
    """A config of fine-tuning need not repeat the network that was pre-trained."""
    path = write_config(tmp_path / "run", model={"options": {"score_threshold": 0.1}})
    script("finetune", "--config", path, "--init", pipeline[0] / "pretrain")
    model = load_config(tmp_path / "run/config.yaml").model
    assert (model.detector, model.backbone) == ("fcos", "resnet18")
    assert model.options == {"channels": 32, "num_convs": 1, "score_threshold": 0.1}


def test_resuming_needs_neither_the_file_of_init_nor_of_the_backbone(
    pipeline, write_config, script, tmp_path
):
    init, backbone = tmp_path / "init.pt", tmp_path / "r18.pth"
    shutil.copy(pipeline[0] / "pretrain/weights.pt", init)
    torch.save(build_backbone("resnet18").state_dict(), backbone)
    path = write_config(tmp_path / "run", model__backbone_weights=str(backbone))
    arguments = ("finetune", "--config", path, "--init", init)
    script(*arguments)
    expected = json.loads((tmp_path / "run/results.json").read_text())
    init.unlink()
    backbone.unlink()
    script(*arguments)  # the run has ended: nothing is left to do but to evaluate
    assert json.loads((tmp_path / "run/results.json").read_text()) == expected


def test_evaluation_of_other_files_is_refused(pipeline, dataset, error_of, tmp_path):
    folder, _ = pipeline
    evaluate = ("finetune", "--config", folder / "finetune.yaml", "--eval-only", "--checkpoint")
    message = error_of(*evaluate, folder / "pretrain" / "weights.pt")
    assert "not a fine-tuned detector (stage box)" in message
    content = json.loads((dataset / "val.json").read_text())
    content["categories"][0]["name"] = "green"
    (tmp_path / "other.json").write_text(json.dumps(content))
    message = error_of(
        *evaluate,
        folder / "finetune" / "weights.pt",
        f"data.val.annotations={tmp_path / 'other.json'}",
    )
    assert "other.json: its categories differ" in message


def test_prediction_refuses_what_it_cannot_use(pipeline, dataset, error_of, tmp_path):
    folder, _ = pipeline
    fine_tuned = folder / "finetune" / "weights.pt"
    output = ("--output", tmp_path / "out", "--device", "cpu")
    images = ("--images", dataset / "val")
    predict = "aligndet.predict"
    message = error_of(predict, "--weights", "none.pt", *images, *output)
    assert "none.pt: no such file" in message
    message = error_of(predict, "--weights", folder / "pretrain" / "weights.pt", *images, *output)
    assert "not a fine-tuned detector" in message
    message = error_of(predict, "--weights", fine_tuned, "--images", tmp_path / "none", *output)
    assert "none: no such directory" in message
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = ("--images", tmp_path / "broken.png")
    message = error_of(predict, "--weights", fine_tuned, *images, *output)
    assert "broken.png: image is truncated or unreadable" in message
    font = ("--font", tmp_path / "broken.png")
    message = error_of(predict, "--weights", fine_tuned, *images, *output, *font)
    assert "broken.png: cannot be used as a font" in message


def test_prediction_leaves_out_what_it_cannot_read(pipeline, dataset, script, tmp_path, capsys):
    folder, _ = pipeline
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes((dataset / "val" / "0.png").read_bytes())
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    weights, output = folder / "finetune" / "weights.pt", tmp_path / "out"
    images = ("--images", tmp_path / "images", "--device", "cpu")
    script("aligndet.predict", "--weights", weights, "--output", output, *images)
    assert "left out: " in capsys.readouterr().out
    content = json.loads((output / "detections.json").read_text())
    assert [entry["file_name"] for entry in content["images"]] == ["a.png"]


def test_crowds_that_are_kept_are_scored(tmp_path, dataset, write_config):
    """As they are trained on: CVAT marks every mask as a crowd."""
    content = json.loads((dataset / "val.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (tmp_path / "val.json").write_text(json.dumps(content))
    path = write_config(tmp_path / "run", data__val__annotations=str(tmp_path / "val.json"))
    config = load_config(path, ["data.crowd=keep"])
    val = build_val(config.data)
    run_directory = RunDirectory(config.output_dir)
    oracle, cpu = OracleDetector(val), torch.device("cpu")
    score = finetune.scorer(oracle, config, val, cpu, run_directory)
    assert score().scores["AP"] == pytest.approx(100.0)
