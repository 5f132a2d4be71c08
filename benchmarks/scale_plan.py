"""Time, cost and limits of the paper's COCO runs on 1, 8 and 64 GPUs, by calculation.

`python -m benchmarks.scale_plan`: it lists its inputs with their sources, then what follows from
them. Nothing here was measured on a GPU; give what you measure, such as `--step-seconds 0.08`, in
place of what is assumed. docs/scale.md discusses the result.

How it counts: a step takes its seconds, or those of the loader if they are more; the average of the
gradients is hidden behind a part of it; evaluations and the start are added. The learning rate and
the number of steps follow the images per step (linear scaling, as `optim.base_batch` does it).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace

from torch import nn

from aligndet.adapters import adapter_class
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from models import ModelConfig, build_detector

COCO_IMAGES = 118_287  # train2017
VAL_IMAGES = 5_000  # val2017
PAPER_BATCH = 16  # 8 GPUs with 2 images each
PAPER_GPUS = (1, 8, 64)
CLASSES = 80

# Seconds of a fine-tuning step of 2 images on a V100 in float32, ResNet-50 with FPN, 800 pixels;
# published, for other code than ours: detectron2's MODEL_ZOO.md (8 V100, 16 images per step) and,
# for FCOS, mmdetection 1.0's configs/fcos/README.md (4 V100, 4 images each: 0.396 s; half of it).
STEP_SECONDS = {"fcos": 0.198, "retinanet": 0.200, "faster_rcnn": 0.210, "mask_rcnn": 0.261}
# Seconds per image of inference, from the same tables (FCOS: 13.6 images per second).
INFERENCE_SECONDS = {"fcos": 0.074, "retinanet": 0.055, "faster_rcnn": 0.038, "mask_rcnn": 0.043}


@dataclass(frozen=True)
class Inputs:
    """What the calculation starts from; `SOURCES` says where each number comes from."""

    step_seconds: float  # a fine-tuning step of `images_per_gpu` images
    box_step_seconds: float  # a box-domain step of as many
    inference_seconds: float  # per image
    scoring_seconds: float = 87.0  # of an evaluation, on rank 0 alone
    start_seconds: float = 60.0  # from the command to the first step
    images_per_gpu: int = 2
    gpus_per_machine: int = 8
    cores_per_machine: int = 48
    link_inside: float = 100e9  # bytes per second and GPU of an all-reduce within a machine
    link_between: float = 10e9  # bytes per second of a machine to the others
    hidden: float = 0.5  # part of a step behind which communication can hide
    workers: int = 4  # loader processes per GPU
    view_rate: float = 40.0  # images per second and loader process, fine-tuning
    two_view_rate: float = 20.0  # the same with two views
    price: float = 3.0  # of a GPU hour, in any currency


SOURCES = {
    "step_seconds": "published for a V100: see STEP_SECONDS in this file",
    "box_step_seconds": "assumed: 1.25 x step_seconds, the ratio for FCOS on a CPU "
    "(benchmarks/scaling.py)",
    "inference_seconds": "published for a V100: see INFERENCE_SECONDS in this file",
    "scoring_seconds": "measured: processor time of one core beside other work, 5,000 images with "
    "100 random detections each (aligndet.evaluate.score)",
    "start_seconds": "assumed",
    "images_per_gpu": "the paper's",
    "gpus_per_machine": "assumed",
    "cores_per_machine": "assumed",
    "link_inside": "assumed; less than the 150 GB/s per direction of a V100's NVLink",
    "link_between": "assumed; a network of 100 Gbit/s, four fifths of it",
    "hidden": "assumed; the backward pass is about two thirds of a step",
    "workers": "data.workers of configs/coco_*",
    "view_rate": "measured by benchmarks/loader.py, processor time, 640 x 480 to 800 px",
    "two_view_rate": "measured by benchmarks/loader.py, processor time, 640 x 480 to 800 px",
    "price": "assumed; take your own",
}


@dataclass(frozen=True)
class Run:
    """One of the paper's runs."""

    name: str
    stage: str  # box_domain or fine_tuning
    images: int  # that all its steps see
    evaluations: int
    gradient_bytes: int
    queries: int = 0  # samples of a view that a rank contrasts


@dataclass(frozen=True)
class Plan:
    """A run on a number of GPUs."""

    gpus: int
    accumulate: int  # batches per step, where the GPUs are fewer than the paper's
    batch: int  # images per step
    steps: int
    rate_factor: float  # of the learning rate, to the paper's
    compute_seconds: float  # of a step, all its batches
    traffic_bytes: float  # that each GPU sends per step
    traffic_seconds: float
    exposed_seconds: float  # of the traffic, what a step waits for
    loader_seconds: float  # that a step waits for images
    images_per_second: float  # that each GPU takes if it need not wait for them
    workers: int  # loader processes per GPU that keep up with that
    training_hours: float
    evaluation_hours: float
    start_hours: float
    cost: float

    @property
    def hours(self) -> float:
        """From the command to the result."""
        return self.training_hours + self.evaluation_hours + self.start_hours

    @property
    def lost(self) -> dict[str, float]:
        """What parts of the time the GPUs do not compute, by the cause."""
        step = self.compute_seconds + self.exposed_seconds + self.loader_seconds
        training = self.training_hours / self.hours / step  # per second of a step
        return {
            "gradients": training * self.exposed_seconds,
            "loader": training * self.loader_seconds,
            "evaluation": self.evaluation_hours / self.hours,
            "start": self.start_hours / self.hours,
        }


def plan(run: Run, inputs: Inputs, gpus: int) -> Plan:
    """What `run` takes on `gpus` GPUs."""
    together = gpus * inputs.images_per_gpu
    accumulate = max(1, math.ceil(PAPER_BATCH / together))
    batch = together * accumulate
    steps = math.ceil(run.images / batch)
    is_box = run.stage == "box_domain"
    one = inputs.box_step_seconds if is_box else inputs.step_seconds
    compute = accumulate * one
    sent = ring_bytes(run.gradient_bytes, gpus)
    seconds = traffic_seconds(run.gradient_bytes, inputs, gpus)
    exposed = max(0.0, seconds - inputs.hidden * one)  # the last of the batches alone sends
    rate = inputs.two_view_rate if is_box else inputs.view_rate
    loading = accumulate * inputs.images_per_gpu / (inputs.workers * rate)
    late = max(0.0, loading - compute - exposed)
    training = steps * (compute + exposed + late) / 3600
    inference = VAL_IMAGES / gpus * inputs.inference_seconds
    evaluation = run.evaluations * (inference + inputs.scoring_seconds) / 3600
    start = inputs.start_seconds / 3600
    return Plan(
        gpus=gpus,
        accumulate=accumulate,
        batch=batch,
        steps=steps,
        rate_factor=batch / PAPER_BATCH,
        compute_seconds=compute,
        traffic_bytes=sent,
        traffic_seconds=seconds,
        exposed_seconds=exposed,
        loader_seconds=late,
        images_per_second=inputs.images_per_gpu / one,
        workers=math.ceil(inputs.images_per_gpu / one / rate),
        training_hours=training,
        evaluation_hours=evaluation,
        start_hours=start,
        cost=(training + evaluation + start) * gpus * inputs.price,
    )


def ring_bytes(gradient_bytes: int, ranks: int) -> float:
    """Bytes that each rank sends in a ring all-reduce: 2 (n - 1) / n times the gradient."""
    return 2 * (ranks - 1) / ranks * gradient_bytes


def traffic_seconds(gradient_bytes: int, inputs: Inputs, gpus: int) -> float:
    """How long the average of the gradients takes.

    Within a machine a ring over its GPUs; between machines, its link carries a ring over the
    machines, after and before that.
    """
    inside = min(gpus, inputs.gpus_per_machine)
    machines = math.ceil(gpus / inputs.gpus_per_machine)
    within = ring_bytes(gradient_bytes, inside) / inputs.link_inside
    return within + ring_bytes(gradient_bytes, machines) / inputs.link_between


def similarities(queries: int, ranks: int) -> int:
    """How many a step computes on each rank: of its queries to both views' samples of `ranks`
    ranks, which are all of them with `box_domain.across_ranks=true` and one with `false`."""
    return queries * 2 * queries * ranks


def gathered_bytes(queries: int, ranks: int) -> int:
    """Bytes of the embeddings that a rank gets from the others for that, in float32."""
    return 4 * BoxDomainConfig.embedding_width * 2 * queries * (ranks - 1)


def trained_bytes(module: nn.Module) -> int:
    """Bytes of all parameters with a gradient, and so of the gradient, in float32."""
    return 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)


def paper_runs(detector: str, images_per_gpu: int) -> list[Run]:
    """The paper's pre-training and the two lengths of its fine-tuning, with ResNet-50."""
    config = ModelConfig(detector=detector, backbone="resnet50")
    tuned = trained_bytes(build_detector(config, CLASSES))
    box = trained_bytes(BoxDomain(build_detector(config, 1), detector, BoxDomainConfig()))
    per_image = 1 if detector == "fcos" else images_per_gpu  # FCOS samples from the whole batch
    queries = per_image * adapter_class(detector).samples
    return [
        Run("pre-training, 12 epochs", "box_domain", 12 * COCO_IMAGES, 0, box, queries),
        Run("fine-tuning, 12k steps", "fine_tuning", 12_000 * PAPER_BATCH, 3, tuned),
        Run("fine-tuning, 90k steps", "fine_tuning", 90_000 * PAPER_BATCH, 6, tuned),
    ]


def default_inputs(detector: str) -> Inputs:
    """The published and assumed numbers for a detector."""
    seconds = STEP_SECONDS[detector]
    return Inputs(seconds, 1.25 * seconds, INFERENCE_SECONDS[detector])


def print_inputs(inputs: Inputs, given: set[str]) -> None:
    """Each number and where it comes from."""
    print("inputs")
    for field in fields(Inputs):
        source = "given" if field.name in given else SOURCES[field.name]
        print(f"  --{field.name.replace('_', '-'):18} {getattr(inputs, field.name):<12g} {source}")


def print_plans(run: Run, inputs: Inputs) -> None:
    """A table with one row per number of GPUs, and what breaks first."""
    print(f"\n{run.name}: a gradient of {run.gradient_bytes / 1e6:.0f} MB")
    print(
        f"{'GPUs':>6} {'batch':>6} {'steps':>7} {'rate':>6} {'hours':>7} {'GPU hours':>10} "
        f"{'cost':>7} {'MB sent':>8} {'ms':>6} {'workers':>8}  lost to"
    )
    for gpus in PAPER_GPUS:
        of = plan(run, inputs, gpus)
        batch = f"{of.batch // of.accumulate}x{of.accumulate}" if of.accumulate > 1 else of.batch
        cause, part = max(of.lost.items(), key=lambda item: item[1])
        print(
            f"{gpus:6} {batch:>6} {of.steps:7,} {of.rate_factor:5g}x {of.hours:7.2f} "
            f"{of.hours * gpus:10.1f} {of.cost:7.0f} {of.traffic_bytes / 1e6:8.0f} "
            f"{1000 * of.traffic_seconds:6.1f} {of.workers:8}  {cause} {part:.1%}"
        )
    cores = (1 + of.workers) * inputs.gpus_per_machine
    print(
        f"  each GPU takes {of.images_per_second:.1f} images per second; with the loader processes "
        f"that keep up with it, a machine needs {cores} cores and has {inputs.cores_per_machine}"
    )
    if run.queries:
        costs = (
            f"{similarities(run.queries, n) / 1e6:,.0f} million, "
            f"{gathered_bytes(run.queries, n) / 1e6:,.0f} MB"
            for n in PAPER_GPUS
        )
        print(
            "  similarities per GPU and step, and embeddings that it gets for them, with "
            f"box_domain.across_ranks=true: {'; '.join(costs)}; with false always the first"
        )


def main() -> None:
    """Parse the command line and calculate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", choices=tuple(STEP_SECONDS), default="fcos")
    for field in fields(Inputs):
        kind = int if field.type == "int" else float
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, metavar="NUMBER", help=SOURCES[field.name])
    args = vars(parser.parse_args())
    detector = args.pop("detector")
    given = {name: value for name, value in args.items() if value is not None}
    if "step_seconds" in given and "box_step_seconds" not in given:
        given["box_step_seconds"] = 1.25 * given["step_seconds"]
    inputs = replace(default_inputs(detector), **given)
    print(f"{detector}, ResNet-50, COCO; no number here was measured on a GPU by this project")
    print_inputs(inputs, {name for name in given if args[name] is not None})
    for run in paper_runs(detector, inputs.images_per_gpu):
        print_plans(run, inputs)


if __name__ == "__main__":
    main()
