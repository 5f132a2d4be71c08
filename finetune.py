"""Fine-tuning and evaluation: `torchrun --nproc-per-node=N finetune.py --config FILE
[--init WEIGHTS] [--eval-only --checkpoint FILE] [key=value ...]`.

Without `--init` the detector starts from its backbone alone (`model.backbone_weights`); with
it, from AlignDet pre-training.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from aligndet import checkpoint, cli, dist
from aligndet.best_weights import BestWeights
from aligndet.compiling import check_compiler, compile_layers
from aligndet.config import Config, load_config
from aligndet.determinism import deterministic
from aligndet.evaluate import Evaluation, evaluate
from aligndet.fine_tuning import FineTuning
from aligndet.report import report_run
from aligndet.resumable import check_resumable
from aligndet.run_directory import RunDirectory, inputs_of
from aligndet.start_block import label_lines, print_start, resumed_from, shortened
from aligndet.transfer import (
    Manifest,
    backbone_manifest,
    detector_file,
    load_pretrained,
    read_detector,
)
from data.bad_images import LeavingOut, NotingCollate
from data.build import build_train, build_val
from data.coco import Categories
from data.counting import count
from data.errors import DataError
from data.loaders import eval_loader
from data.views import DetectionDataset, collate_detection
from models import build_detector
from models.detector import learns_masks
from models.mask_rcnn import MaskRCNN
from train import Batches, build_schedule, fit


def main() -> None:
    """Parse the command line, train unless told otherwise, evaluate."""
    parser = cli.parser("Fine-tuning and evaluation of a detector.")
    add, home = parser.add_argument, os.path.expanduser  # shells leave --init=~/run as it is
    add("--init", type=home, metavar="RUN", help="of pretrain.py: its output_dir or weights.pt")
    add("--eval-only", action="store_true", help="evaluate --checkpoint")
    add("--checkpoint", type=home, metavar="RUN", help="output_dir or weights.pt of a run")
    args = parser.parse_intermixed_args()
    if args.eval_only != (args.checkpoint is not None):
        parser.error("--eval-only and --checkpoint FILE go together")
    with cli.one_line_errors(ValueError):
        config = load_config(args.config, args.overrides, args.init)
    with cli.training_process(config.device) as device, deterministic(config.deterministic):
        if args.eval_only:
            evaluation_only(config, args, device)
        else:
            fine_tuning_stage(config, args, device)


def fine_tuning_stage(config: Config, args: argparse.Namespace, device: torch.device) -> None:
    """Train on labelled boxes, write weights.pt, evaluate."""
    with cli.one_line_errors(ValueError):
        check_compiler(config.compile, device)
        train = build_train(config.data, learns_masks(config.model.detector))
        val = build_val(config.data)
        categories = train.coco.categories
        check_same_categories(val, categories, train.coco.annotations)
        batches = Batches(train, train.coco.aspect_ratios, collate_detection)
        schedule = build_schedule(config, batches)
        run = RunDirectory(config.output_dir)
        inputs = inputs_of("finetune", config, train.coco, init=args.init)
        resume = run.find(config, args.resume, inputs)
        torch.manual_seed(config.seed)
        model = config.model
        if resume or (args.init and config.transfer.takes_backbone):
            model = replace(model, backbone_weights=None)  # the file need not be on this machine
        detector = build_detector(model, len(categories))
        manifest = None if resume else start_weights(detector, config, args.init, categories)
        task = FineTuning(detector)
        check_resumable(run.resumed, resume, task, config, schedule.total_steps)
        run.open(config, resume, (*train.coco.bad, *val.coco.bad))
        sides = (config.data.eval_short_side, config.data.max_side)
        content = partial(
            detector_file, detector, config.model, categories, sides, config.data.reading
        )
        best = BestWeights(run.best, content)
    if manifest and dist.is_main():
        manifest.save(run.manifest)
    title = f"fine-tuning {config.model.detector} on {config.model.backbone}, "
    title += f"{count(len(categories), 'class')}: {shortened(categories.names)}"
    labels = {"train": label_lines(train.coco), "val": label_lines(val.coco)}
    weights = resumed_from(resume) or weight_lines(detector, manifest)
    print_start(title, labels, config, schedule, device, weights)
    evaluation = scorer(detector, config, val, device, run)

    def score(step: int) -> dict[str, float | None]:
        scores = evaluation().scores
        best.offer(scores["AP"])
        return scores

    fit(task, batches, config, run, resume, device, score)
    if dist.is_main():
        checkpoint.save(content(), run.weights)
    final = evaluation()
    if config.evaluation.every:
        best.offer(final.scores["AP"])
    run.report_evaluation(final, "results")
    if dist.is_main():
        paths = (run.path, config.data.val.images, run.path / "detections")
        weights, images, output = (shlex.quote(str(path)) for path in paths)
        print(
            f"weights: {run.weights}\nnext: python -m aligndet.predict --weights {weights} "
            f"--images {images} --output {output}"
        )
        if config.loop.report:
            report_run(run.path)


def start_weights(
    detector: nn.Module, config: Config, init: str | None, categories: Categories
) -> Manifest:
    """Fill the detector from `--init`, if it is given; the manifest of what it starts from.

    Raises:
        ValueError: see `load_pretrained`.
    """
    if init is None:
        return backbone_manifest(detector)
    return load_pretrained(detector, config.model.detector, init, categories, config.transfer)


def weight_lines(detector: nn.Module, manifest: Manifest) -> list[str]:
    """Where the weights come from."""
    origin = detector.backbone.origin
    return [*(origin.summary().splitlines() if origin else []), *manifest.summary().splitlines()]


def evaluation_only(config: Config, args: argparse.Namespace, device: torch.device) -> None:
    """Score a fine-tuned detector, which is rebuilt from the checkpoint alone."""
    with cli.one_line_errors(ValueError):
        check_compiler(config.compile, device)
        val = build_val(config.data)
        detector, categories, *_ = read_detector(args.checkpoint)
        check_same_categories(val, categories, args.checkpoint)
    run = RunDirectory(config.output_dir)
    detector.to(device, memory_format=torch.channels_last)  # as in training: the same numbers
    compile_layers(detector, config.compile)
    score = scorer(detector, config, val, device, run)
    # The run's own results belong to its own weights and settings, which may differ.
    run.report_evaluation(score(), "results" if run.is_new else "evaluation")


def check_same_categories(val: DetectionDataset, categories: Categories, source: object) -> None:
    """Labels must mean the same in training and evaluation."""
    if val.coco.categories != categories:
        raise DataError(
            f"{val.coco.annotations}: its categories differ from those of {source}; "
            "make ids and names equal"
        )


def scorer(
    detector: nn.Module,
    config: Config,
    val: DetectionDataset,
    device: torch.device,
    run: RunDirectory,
) -> Callable[[], Evaluation]:
    """A function that evaluates the detector in its current state."""
    dataset, collate = val, collate_detection
    if config.data.on_bad_image == "skip":
        dataset, collate = LeavingOut(val), NotingCollate(collate)
    loader = eval_loader(
        dataset,
        val.coco.aspect_ratios,
        collate,
        config.evaluation.batch_size or config.data.batch_size,
        config.data.workers,
        dist.rank(),
        dist.world_size(),
        pin_memory=device.type == "cuda",
    )
    with cli.one_line_errors(ValueError):
        annotations = val.coco.content(with_masks=isinstance(detector, MaskRCNN))
    where = val.coco.categories, device
    return partial(evaluate, detector, loader, annotations, *where, config.amp, run.skipped.note)


if __name__ == "__main__":
    main()
