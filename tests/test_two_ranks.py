"""Two processes give what one gives with the same global batch, in both stages and in evaluation.

The images have different numbers of boxes, one of them none, so a rank's own number of positives,
of instances, or sum of centerness would give another result. Everything is computed in float64: the
convolutions of one image and of two round differently, and each step amplifies it.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
import torch.distributed
import torch.multiprocessing as mp

from aligndet import dist
from aligndet.box_domain import BoxDomain
from aligndet.config import build_config
from aligndet.evaluate import evaluate
from aligndet.fine_tuning import FineTuning
from aligndet.image_domain import build_image_domain
from aligndet.run_directory import RunDirectory
from data.build import build_image_files, build_train, build_two_views, build_val
from data.coco_json import load_coco
from data.image_views import ImageViews, collate_image_views
from data.loaders import GroupedBatchSampler, eval_loader
from data.normalise import normalise_batch
from data.views import collate_detection, collate_views
from models import build_detector
from models.detector import learns_masks
from tests.helpers.double_precision import double_precision
from tests.helpers.narrow_backbones import narrow_backbones
from tests.helpers.oracle_detector import OracleDetector
from tests.helpers.small_detectors import BOX_LOSSES, EVERYTHING, OPTIONS
from train import Batches, fit, step_seed

pytestmark = pytest.mark.usefixtures("double_precision")

CPU = torch.device("cpu")
STEPS = 4

# Changes to the config of each run; batch_size is that of two ranks.
RUNS = {
    "box_within_ranks": {
        "data__batch_size": 1,
        "box_domain__across_ranks": False,
        "schedule__iterations": 1,
    },
    "detector_accumulated": {
        "data__batch_size": 1,
        "data__skip_empty": False,
        "optim__accumulate": 2,
        "optim__clip_norm": 0.5,
    },
}
LOSSES = {"detector_accumulated": {"loss", "loss_class"} | BOX_LOSSES["fcos"]}
for kind, options in OPTIONS.items():
    if kind == "faster_rcnn":  # all of it is in Mask R-CNN, and these runs take minutes
        continue
    common = {"model__detector": kind, "model__options": options, "data__batch_size": 2}
    # One image per rank: in one of the four steps of an epoch, a rank has no boxes at all.
    RUNS[f"box_{kind}"] = {**common, "box_domain__across_ranks": True, "data__batch_size": 1}
    RUNS[f"detector_{kind}"] = {**common, "data__skip_empty": False}
    LOSSES[f"box_{kind}"] = {"loss", "loss_contrast"} | BOX_LOSSES[kind]
    LOSSES[f"detector_{kind}"] = {"loss", "loss_class"} | BOX_LOSSES[kind]
# BatchNorm in two groups, on one rank as on two, so that both normalise the same images together.
IMAGE = {"crop_size": 64, "norm_groups": 2, "moco": {"queue": 24, "embedding_width": 16}}
for method, loss in (("moco_v2", "loss_contrast"), ("supervised", "loss_class")):
    RUNS[f"image_{method}"] = {"data__batch_size": 4, "image": {**IMAGE, "method": method}}
    LOSSES[f"image_{method}"] = {"loss", loss}
# A Swin has no BatchNorm at all.
RUNS["image_simmim"] = {"data__batch_size": 4, "image": {**IMAGE, "method": "simmim"}}
RUNS["image_simmim"]["model__backbone"] = "swin_t"
LOSSES["image_simmim"] = {"loss", "loss_pixels"}
RUNS["detector_swin"] = {**RUNS["detector_fcos"], "model__backbone": "swin_t"}
LOSSES["detector_swin"] = LOSSES["detector_fcos"]


@narrow_backbones()
def stage(name, config):
    """Task and batches as the scripts build them."""
    torch.manual_seed(config.seed)
    if name.startswith("image"):
        images = build_image_files(config.data, config.image.spec.needs_classes)
        task = build_image_domain(config.model, config.image, config.data.batch_size, images)
        image = config.image
        dataset = ImageViews(images, image.augment, image.spec.views, image.hide)
        return task, Batches(dataset, dataset.aspect_ratios, collate_image_views)
    if name.startswith("box"):
        dataset = build_two_views(config.data, None, learns_masks(config.model.detector))
        task = BoxDomain(build_detector(config.model, 1), config.model.detector, config.box_domain)
        return task, Batches(dataset, dataset.source.aspect_ratios, collate_views)
    dataset = build_train(config.data, learns_masks(config.model.detector))
    task = FineTuning(build_detector(config.model, len(dataset.coco.categories)))
    return task, Batches(dataset, dataset.coco.aspect_ratios, collate_detection)


def train(name, content):
    config = build_config(content)
    task, batches = stage(name, config)
    run = RunDirectory(config.output_dir)
    state = run.find(config, "none")
    run.open(config, state)
    fit(task, batches, config, run, state, CPU)


def score(content, statistic=1.0):
    """AP of a detector that is right, but not exactly, and its BatchNorm statistic afterwards."""
    config = build_config(content)
    val = build_val(config.data)
    loader = eval_loader(
        val, val.coco.aspect_ratios, collate_detection, 2, 0, dist.rank(), dist.world_size()
    )
    annotations = load_coco(val.coco.annotations)
    for entry in annotations["annotations"]:  # the middle of the box, roughly as the detector says
        x, y, w, h = entry["bbox"]
        left, top, right, bottom = x + 0.2 * w, y + 0.2 * h, x + 0.8 * w, y + 0.8 * h
        entry["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    detector = OracleDetector(val, noise=5.0, masks=True)
    detector.register_buffer("statistic", torch.tensor(statistic))
    evaluation = evaluate(detector, loader, annotations, val.coco.categories, CPU)
    return {**asdict(evaluation), "statistic": detector.statistic.item()}


def rank_main(rank, folder, contents):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2
    )
    with double_precision():
        for name, content in contents.items():
            train(name, content)
        scores = score(contents["detector_fcos"], statistic=1.0 + rank)
    (folder / f"scores{rank}.json").write_text(json.dumps(scores))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, content, class_folders):
    """Every run by two ranks, in the folder `NAME.2`, and by one, in `NAME.1`."""
    folder = tmp_path_factory.mktemp("ranks")
    common = {"box_domain__samples": EVERYTHING, "schedule__iterations": STEPS}
    common["loop__checkpoint_every"] = STEPS  # one, in the end: they are large

    def contents(world_size, names):
        result = {}
        for name in names:
            changes = {**common, **RUNS[name]}
            changes["data__batch_size"] *= 2 // world_size
            if name == "image_supervised":
                changes["data__train__images"] = str(class_folders / "train")
            result[name] = content(folder / f"{name}.{world_size}", **changes)
        return result

    mp.spawn(rank_main, (folder, contents(2, RUNS)), nprocs=2)
    with double_precision():
        for name, its_content in contents(1, RUNS).items():
            train(name, its_content)
    return folder


def metrics(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def model(folder, name):
    return torch.load(folder / name / "last.pt", weights_only=True)["model"]


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_equal_one_with_the_same_global_batch(folder, name):
    one, two = metrics(folder, f"{name}.1"), metrics(folder, f"{name}.2")
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert len(one) == STEPS
    for ours, theirs in zip(two, one, strict=True):
        assert ours["lr"] == theirs["lr"]
        assert ours["epoch"] == theirs["epoch"]
        for key in LOSSES[name]:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9, abs=1e-9), key


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_two_ranks_equal_those_of_one(folder, name):
    one, two = model(folder, f"{name}.1"), model(folder, f"{name}.2")
    config = build_config(torch.load(folder / f"{name}.1" / "last.pt")["config"])
    start = stage(name, config)[0].state_dict()
    assert one.keys() == two.keys() == start.keys()
    moved = {key: (one[key] - start[key]).abs().max().item() for key in one}
    for key, tensor in two.items():
        torch.testing.assert_close(tensor, one[key], rtol=1e-9, atol=1e-9, msg=key)
    # The steps moved the weights by much more than the tolerance.
    assert max(moved.values()) > 1e-3
    assert sum(m > 1e-4 for m in moved.values()) > 10


def test_contrast_within_ranks_is_the_mean_over_ranks(folder, content):
    """Step 1 of the two-rank run against each rank's images contrasted in this process."""
    changes = {**RUNS["box_within_ranks"], "box_domain__samples": EVERYTHING}
    config = build_config(content(folder / "unused", **changes))
    task, batches = stage("box", config)
    contrasts, expected_floor = [], []
    for rank in range(2):
        sampler = GroupedBatchSampler(batches.aspect_ratios, 1, rank, 2, config.seed)
        keys = next(iter(sampler))
        torch.manual_seed(step_seed(config.seed, 0, 0, rank))
        batch = collate_views([batches.dataset[key] for key in keys])
        losses, statistics = task(normalise_batch(batch))
        contrasts.append(losses["loss_contrast"].item())
        expected_floor.append(statistics["contrast_floor"].item())
    first = metrics(folder, "box_within_ranks.2")[0]
    assert first["loss_contrast"] == pytest.approx(sum(contrasts) / 2, rel=1e-9)
    assert first["contrast_floor"] == pytest.approx(sum(expected_floor) / 2, rel=1e-9)
    assert contrasts[0] != pytest.approx(contrasts[1], rel=1e-3)
    # Contrast over both ranks is not the same: more negatives, a higher loss.
    assert metrics(folder, "box_fcos.2")[0]["loss_contrast"] > first["loss_contrast"] + 0.1


def test_box_losses_of_the_contrast_within_ranks_are_global(folder):
    two, one = metrics(folder, "box_within_ranks.2")[0], metrics(folder, "box_within_ranks.1")[0]
    for key in ("loss_box", "loss_centerness"):
        assert two[key] == pytest.approx(one[key], rel=1e-9)


def test_evaluation_shared_by_two_ranks_equals_one(folder, content):
    """Five images: one rank has three, the other two. Both use the statistics of rank 0, whose
    weights are saved."""
    expected = score(content(folder / "unused"))
    assert 0 < expected["scores"]["AP"] < 100
    assert 0 < expected["scores"]["segm_AP"] < 100
    for rank in range(2):
        assert json.loads((folder / f"scores{rank}.json").read_text()) == expected
