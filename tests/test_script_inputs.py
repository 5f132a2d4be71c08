"""Bad input to the scripts: one line that names the file or key and the remedy, no traceback."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from models import build_backbone


def broken_json(content, folder, dataset):
    (folder / "bad.json").write_text('{"images": [')
    return [f"data.train.annotations={folder / 'bad.json'}"]


def write(content, folder):
    (folder / "bad.json").write_text(json.dumps(content))
    return [f"data.train.annotations={folder / 'bad.json'}"]


def no_annotations(content, folder, dataset):
    del content["annotations"]
    return write(content, folder)


def flat_box(content, folder, dataset):
    content["annotations"][2]["bbox"] = [10, 10, 0, 5]
    return write(content, folder)


def outside_box(content, folder, dataset):
    content["annotations"][2]["bbox"] = [96, 10, 5, 5]
    return write(content, folder)


def all_crowds(content, folder, dataset):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    return write(content, folder)


def unknown_category(content, folder, dataset):
    content["annotations"][2]["category_id"] = 5
    return write(content, folder)


def missing_image(content, folder, dataset):
    content["images"][1]["file_name"] = "nowhere.png"
    return write(content, folder)


def other_size(content, folder, dataset):
    content["images"][1]["width"] = 200
    return write(content, folder)


def truncated_image(content, folder, dataset):
    images = copy_images(folder, dataset)
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:500])
    return [f"data.train.images={images}"]


def copy_images(folder, dataset):
    return shutil.copytree(dataset / "train", folder / "images")


def other_backbone(content, folder, dataset):
    torch.save(build_backbone("resnet34").state_dict(), folder / "resnet34.pth")
    return [f"model.backbone_weights={folder / 'resnet34.pth'}"]


def bad_val_box(content, folder, dataset):
    content["annotations"][0]["bbox"] = [10, 10]
    write(content, folder)
    images = f"data.val.images={dataset / 'train'}"
    return [images, f"data.val.annotations={folder / 'bad.json'}"]


# Arguments, or the function that makes them, and what the message must say.
BAD_INPUT = {
    "typo": (["data.batchsize=2"], "did you mean data.batch_size"),
    "value": (["data.batch_size=many"], "data.batch_size is 'many'"),
    "device": (["device=tpu"], "device is 'tpu'; set it to auto, cpu or cuda"),
    "backbone": (["model.backbone=resnet19"], "model.backbone is 'resnet19'"),
    "option": (["model.options.chanels=64"], "did you mean channels"),
    "option value": (["model.options.channels=x"], "model.options.channels is 'x'"),
    "no annotations": (["data.train.annotations=null"], "train.annotations is not set"),
    "no file": (["data.train.annotations=none.json"], "none.json: no such file"),
    "no folder": (["data.train.images=nowhere"], "nowhere: no such directory"),
    "broken json": (broken_json, "bad.json: not valid JSON"),
    "no list": (no_annotations, "bad.json: not a COCO JSON, it has no list 'annotations'"),
    "flat box": (flat_box, "bad.json: the box [10, 10, 0, 5] of annotation 3 has no area"),
    "outside box": (outside_box, "of annotation 3 lies outside the image of 96 x 64 pixels"),
    "all crowds": (all_crowds, "only 16 crowd boxes; set data.crowd=keep"),
    "unknown category": (unknown_category, "annotation 3 has category_id 5"),
    "missing image": (missing_image, "nowhere.png: image is missing"),
    "truncated image": (truncated_image, "1.png: image is truncated"),
    "other size": (other_size, "has 96 x 64 pixels, but"),
    "bad validation box": (bad_val_box, "annotation 1 has bbox [10, 10], which is not four"),
    "other backbone": (other_backbone, "resnet34.pth: not the weights of resnet18"),
    "no backbone file": (["model.backbone_weights=none.pth"], "none.pth: no such file of weights"),
    "no init": (["--init", "none.pt"], "none.pt: no such file; give --init"),
    "no checkpoint": (["--resume", "none.pt"], "none.pt: no such file; give --resume"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line(name, tmp_path, dataset, write_config, error_of):
    change, message = BAD_INPUT[name]
    content = json.loads((dataset / "train.json").read_text())
    arguments = change(content, tmp_path, dataset) if callable(change) else change
    path = write_config(tmp_path / "run", schedule__iterations=4)
    found = error_of("finetune", "--config", path, *arguments)
    assert message in found
    assert len(found) < 500


def test_pretraining_checks_its_proposals(tmp_path, dataset, write_config, error_of):
    path = write_config(tmp_path / "run")
    message = error_of("pretrain", "--config", path, "data.train.images=null")
    assert "data.train.images is not set" in message
    content = json.loads((dataset / "proposals.json").read_text())
    flat_box(content, tmp_path, dataset)
    message = error_of("pretrain", "--config", path, f"data.train.proposals={tmp_path}/bad.json")
    assert "the box [10, 10, 0, 5] of annotation 3 has no area" in message


def test_fewer_images_than_a_batch_cannot_be_contrasted(write_config, error_of, tmp_path):
    path = write_config(tmp_path / "run", data__batch_size=9)
    message = error_of("pretrain", "--config", path)
    assert "data.train has 8 images, fewer than the 9 in a batch" in message


def test_an_image_that_breaks_in_the_middle_stops_training_with_its_name(
    tmp_path, dataset, write_config, error_of
):
    """The file's end is intact, so only decoding fails; the steps done so far are kept."""
    images = copy_images(tmp_path, dataset)
    whole = (images / "7.png").read_bytes()
    (images / "7.png").write_bytes(whole[:300] + bytes(200) + whole[500:])
    path = write_config(
        tmp_path / "run",
        data__train__images=str(images),
        loop__checkpoint_every=100,
        schedule__iterations=8,
    )
    message = error_of("finetune", "--config", path)
    assert "7.png: image is truncated or unreadable" in message
    metrics = tmp_path / "run" / "metrics.jsonl"
    steps = metrics.read_text().count("\n") if metrics.exists() else 0
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == steps


def test_a_run_that_diverges_says_so(tmp_path, write_config, error_of):
    path = write_config(tmp_path / "run", optim__lr=1e30)
    message = error_of("finetune", "--config", path)
    assert "the loss is not finite at step" in message
    assert "lower optim.lr" in message


def test_overrides_may_come_before_and_after_options(tmp_path, write_config, error_of):
    path = write_config(tmp_path / "run")
    message = error_of("finetune", "--config", path, "seed=1", "--init", "x.pt", "data.bach=2")
    assert "data.bach" in message
    message = error_of("pretrain", "--config", path, "seed=1", "--resume", "none", "data.bach=2")
    assert "data.bach" in message
