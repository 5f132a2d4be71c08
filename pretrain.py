"""Pre-training: `torchrun --nproc-per-node=N pretrain.py --config FILE [--stage image|box]
[key=value ...]`.

`--stage image` trains a backbone on whole images and writes a file for `model.backbone_weights`.
`--stage box` (default) is AlignDet's box-domain stage: build the detector, wrap it in `BoxDomain`,
train it with `train.fit`, and write what fine-tuning starts from.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from aligndet import checkpoint, cli, dist
from aligndet.box_domain import BoxDomain
from aligndet.cluster_options import feature_settings
from aligndet.clusters import ClusterSettings, assign_clusters, kept_clusters
from aligndet.compiling import check_compiler
from aligndet.config import Config, load_config
from aligndet.determinism import deterministic
from aligndet.image_domain import ImageTask, build_image_domain
from aligndet.probe import ProbeData, probe
from aligndet.reconstructions import Reconstructions
from aligndet.report import report_run
from aligndet.resumable import check_resumable
from aligndet.run_directory import RunDirectory, inputs_of
from aligndet.simmim import SimMIM
from aligndet.start_block import backbone_lines, print_start, proposal_lines, resumed_from
from aligndet.transfer import backbone_file, pretrained_file
from data.atomic_files import open_atomic
from data.box_labels import BoxLabels
from data.build import build_image_files, build_two_views
from data.counting import count
from data.errors import DataError
from data.image_folder import ImageFiles
from data.image_views import ImageViews, collate_image_views
from data.views import TwoViewDataset, collate_views
from models import build_detector
from train import Batches, build_schedule, fit, global_batch


def main() -> None:
    """Parse the command line and run the stage."""
    parser = cli.parser("Pre-training of AlignDet, image domain and box domain.")
    parser.add_argument("--stage", choices=("image", "box"), default="box")
    args = parser.parse_intermixed_args()
    with cli.one_line_errors(ValueError):
        config = load_config(args.config, args.overrides)
    stage = image_domain_stage if args.stage == "image" else box_domain_stage
    with cli.training_process(config.device) as device, deterministic(config.deterministic):
        stage(config, args, device)


def box_domain_stage(config: Config, args: argparse.Namespace, device: torch.device) -> None:
    """Neck and head learn from the proposals; see `aligndet/box_domain.py`."""
    with cli.one_line_errors(ValueError):
        check_compiler(config.compile, device)
        limit = config.box_domain.max_proposals
        dataset = build_two_views(config.data, limit, config.pretrains_masks)
        check_enough_images(len(dataset), global_batch(config))
        batches = Batches(dataset, dataset.source.aspect_ratios, collate_views, distinct=True)
        schedule = build_schedule(config, batches)
        run = RunDirectory(config.output_dir)
        resume = run.find(config, args.resume, inputs_of("box", config, dataset.source))
        torch.manual_seed(config.seed)
        # Without pseudo-classes the classification layer is set aside.
        classes = pseudo_classes(config, dataset)
        # last.pt holds the backbone too, so its file may be gone when a run is resumed.
        model = replace(config.model, backbone_weights=None) if resume else config.model
        detector = build_detector(model, num_classes=classes or 1)
        task = BoxDomain(detector, config.model.detector, config.box_domain)
        check_resumable(run.resumed, resume, task, config, schedule.total_steps)
        run.open(config, resume, dataset.source.bad)
        if classes and dataset.num_clusters is None:
            dataset.clusters = find_clusters(config, dataset, task, run, resume, device)
    frozen = 5 if config.box_domain.freeze_backbone else config.model.frozen_stages
    weights = backbone_lines(task.backbone, frozen)
    title = f"box-domain pre-training of {config.model.detector} on {config.model.backbone}"
    images = {"train": proposal_lines(config, dataset.source)}
    print_start(title, images, config, schedule, device, resumed_from(resume) or weights)
    fit(task, batches, config, run, resume, device)
    if dist.is_main():
        checkpoint.save(pretrained_file(task.weights(), config.model), run.weights)
        print(
            f"weights: {run.weights}\nnext: python finetune.py --config CONFIG --init {run.path} "
            "output_dir=..."
        )
        if config.loop.report:
            report_run(run.path)


def pseudo_classes(config: Config, dataset: TwoViewDataset) -> int:
    """How many pseudo-classes the detector learns; 0 if it learns none."""
    if not config.box_domain.cluster_weight:
        return 0
    return dataset.num_clusters or config.box_domain.clusters


def find_clusters(
    config: Config,
    dataset: TwoViewDataset,
    task: BoxDomain,
    run: RunDirectory,
    resume: dict[str, Any] | None,
    device: torch.device,
) -> BoxLabels:
    """The pseudo-classes of proposals that have none in their file, kept in the run directory.

    Raises:
        DataError: see `assign_clusters`; a resumed run does not find those that it had.
    """
    data, box_domain = config.data, config.box_domain
    features = feature_settings(config)
    settings = ClusterSettings(box_domain.clusters, seed=config.seed, features=features)
    kept = run.path / "clusters.pt"
    if not resume:
        return assign_clusters(
            dataset.source, task.backbone.to(device), settings, device,
            batch_size=data.batch_size, workers=data.workers,
            skip_bad=data.on_bad_image == "skip", kept=kept,
        )  # fmt: skip
    if dist.is_main() and not kept.exists():  # resumed in another folder
        beside = run.resumed.with_name(kept.name)
        if beside.exists():
            with open(beside, "rb") as file, open_atomic(kept, binary=True) as copy:
                shutil.copyfileobj(file, copy)
    labels = kept_clusters(kept, dataset.source, settings)
    if labels is None:  # the backbone may have been trained since
        raise DataError(
            f"{kept}: is not there, or not of these proposals, so the run cannot go on; start over "
            "with --resume none"
        )
    return labels


def check_enough_images(images: int, batch: int) -> None:
    """No image may be in a batch twice: its copies would have ids of their own, so each box
    would be its own negative.

    Raises:
        DataError: there are fewer images than one forward pass of all processes takes.
    """
    if images < batch:
        raise DataError(
            f"data.train has {images} images, fewer than the {batch} in a batch of all processes; "
            "lower data.batch_size, start fewer processes, or add images"
        )


def image_domain_stage(config: Config, args: argparse.Namespace, device: torch.device) -> None:
    """The backbone learns from whole images; see `aligndet/image_domain.py`."""
    with cli.one_line_errors(ValueError):
        check_compiler(config.compile, device)
        images = build_image_files(config.data, config.image.spec.needs_classes)
        image = config.image
        dataset = ImageViews(images, image.augment, image.spec.views, image.hide)
        batches = Batches(dataset, dataset.aspect_ratios, collate_image_views)
        schedule = build_schedule(config, batches)
        run = RunDirectory(config.output_dir)
        resume = run.find(config, args.resume, inputs_of("image", config, images))
        torch.manual_seed(config.seed)
        model = replace(config.model, backbone_weights=None) if resume else config.model
        task = build_image_domain(model, config.image, config.data.batch_size, images)
        check_resumable(run.resumed, resume, task, config, schedule.total_steps)
        evaluate = image_evaluation(task, dataset, config, device, run)
        run.open(config, resume, images.bad)
    title = f"image-domain pre-training of {config.model.backbone} by {config.image.method}"
    train = {"train": [count(len(images), "image"), *images.notes, *task.notes(len(images))]}
    weights = backbone_lines(task.backbone, frozen_stages=0)
    print_start(title, train, config, schedule, device, resumed_from(resume) or weights)
    fit(task, batches, config, run, resume, device, evaluate)
    if dist.is_main():
        checkpoint.save(backbone_file(task.weights(), config.model, images.classes), run.weights)
        print(
            f"weights: {run.weights}\nnext: python pretrain.py --config CONFIG "
            f"model.backbone_weights={run.path} output_dir=..."
        )
    if evaluate:
        run.report(evaluate(schedule.total_steps), run.results)


def image_evaluation(
    task: ImageTask, dataset: ImageViews, config: Config, device: torch.device, run: RunDirectory
) -> Callable[[int], dict[str, float]] | None:
    """A function that measures the task in its current state, after some steps; None if there is
    nothing to measure."""
    scorer = backbone_scorer(task, dataset.images, config, device)
    pictures = None
    if isinstance(task, SimMIM):
        folder = run.path / "reconstructions"
        pictures = Reconstructions(task, dataset, folder, device, config.amp)
    if scorer is None and pictures is None:
        return None

    def evaluate(step: int) -> dict[str, float]:
        of_pictures = pictures(step) if pictures else {}
        return {**of_pictures, **(scorer() if scorer else {})}

    return evaluate


def backbone_scorer(
    task: ImageTask, images: ImageFiles, config: Config, device: torch.device
) -> Callable[[], dict[str, float]] | None:
    """A function that measures the backbone in its current state; None if no images are given."""
    image = config.image
    if image.probe_train is None or image.probe_val is None:
        return None
    data = ProbeData.read(image.probe_train, image.probe_val, config.data.reading)
    same_classes = images.classes == data.val.classes
    return partial(
        probe,
        task.backbone,
        data,
        image.crop_size,
        config.evaluation.batch_size or config.data.batch_size,
        config.data.workers,
        device,
        config.amp,
        task.linear if same_classes else None,
    )


if __name__ == "__main__":
    main()
