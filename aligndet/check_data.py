"""Read everything that training would read, and print one page about it.

    python -m data.check --config FILE [--stage finetune|box|image] [key=value ...]

The page shows images, boxes and classes, sizes as the network sees them, what is left out, and how
many points or anchors the detector would match with boxes of each size. Every image is decoded.
What training would refuse, or stop at later, is listed at the end, all of it, with exit status 1.
The backbone's weights are not read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from aligndet import data_page
from aligndet.adapters import adapter_class
from aligndet.box_domain import BoxDomainConfig
from aligndet.config import Config, load_config
from aligndet.evaluate import average_precision
from aligndet.optim import Schedule
from aligndet.positives import ASSIGNERS, detector_without_weights
from aligndet.probe import ProbeData
from aligndet.refused import MOST, Judged, judge
from aligndet.start_block import label_lines
from aligndet.strict_yaml import load_yaml
from data.build import build_image_files, build_train, build_two_views, build_val
from data.coco import CocoDataset
from data.coco_boxes import box_problem, part_inside
from data.coco_json import load_coco
from data.coco_masks import open_masks
from data.counting import count
from data.errors import DataError
from data.images import BadImage, ImageReading, read_image
from data.loaders import GroupedBatchSampler
from data.plain_text import say, say_all
from data.walk import list_images
from models.detector import learns_masks

THREADS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 if training would refuse the config or the data."""
    parser = argparse.ArgumentParser(description="Read all that training would read.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see configs/")
    parser.add_argument(
        "--stage", choices=tuple(CHECKS), help="what the config is for (by the keys that are set)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args(arguments)
    try:
        config = load_config(args.config, args.overrides)
    except ValueError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    stage = args.stage or recognise(args.config, args.overrides, config)
    print(f"{args.config}: {TITLES[stage]}")
    problems = CHECKS[stage](config)
    if not problems:
        print("\nno problems: training can start")
        return 0
    print(f"\n{count(len(problems), 'problem')} that training would stop at:")
    say_all(data_page.problem_lines(problems))
    return 1


def recognise(path: str | Path, overrides: Sequence[str], config: Config) -> str:
    """The stage that a config is for, by the keys that are set."""
    given = set(load_yaml(Path(path).read_text(encoding="utf-8")))
    given |= {override.partition("=")[0].split(".")[0] for override in overrides}
    is_image = "image" in given
    if is_image and "box_domain" in given:  # the config of a run directory, which names all keys
        of_boxes = config.data.train.annotations or config.data.train.proposals
        is_image = not of_boxes and config.box_domain == BoxDomainConfig()
    if is_image:
        return "image"
    return "box" if config.data.train.annotations is None else "finetune"


def check_finetuning(config: Config) -> list[str]:
    """Print what fine-tuning and its evaluation would read; returns the problems."""
    data = config.data
    masks = learns_masks(config.model.detector)
    build = partial(build_train, with_masks=masks)
    train, problems = check_labelled(config, "train", build)
    if train is not None:
        problems += print_positives(config, train, len(train.categories))
        problems += _schedule_problems(config, train.aspect_ratios)
    val, more = check_labelled(config, "val", build_val)
    problems += more
    if val is not None:
        problems += print_perfect_score(data.val.annotations, data.crowd)
        if masks and not more:
            problems += _refusal(partial(open_masks, data.val.annotations, val.coco))
    if train is not None and val is not None:
        if train.categories != val.categories:
            problems.append(
                f"{data.val.annotations}: its categories differ from those of "
                f"{data.train.annotations}; make ids and names equal"
            )
        both = _paths(train) & _paths(val)
        if both:
            say(f"note: {count(len(both), 'image')} in train and in val, such as {min(both)}")
    return problems


def check_labelled(
    config: Config, name: str, build: Callable[[Any], Any]
) -> tuple[CocoDataset | None, list[str]]:
    """Print the section of one labelled split.

    Args:
        config: of the run.
        name: train or val.
        build: of `data.build`, from the `data` section to a dataset with an attribute `coco`.

    Returns:
        The dataset without what is refused, None if nothing is left; the problems.
    """
    data, split = config.data, getattr(config.data, name)
    print(f"\n{name}: {split.images}, {split.annotations}")
    if split.images is None or split.annotations is None:
        return None, _refusal(partial(build, data))

    def dataset(path: Path, **changes: Any) -> CocoDataset:
        changes[name] = replace(split, annotations=str(path))
        return build(replace(data, **changes)).coco

    judged = judge(dataset, partial(dataset, skip_empty=False), split.annotations)
    problems = _all_problems(judged, split.annotations, name)
    coco = judged.accepted
    if coco is not None:
        records = coco.records
        lines = [
            *label_lines(coco),
            *data_page.class_lines(coco.categories.names, records.labels().tolist()),
            data_page.per_image_line(records.box_counts().tolist(), "boxes"),
            *_size_lines(config, name, _sizes(coco)),
        ]
        say_all(lines)
    return coco, problems


def _size_lines(config: Config, name: str, sizes: list[tuple[int, int]]) -> list[str]:
    """The sizes of a labelled split, as files and as the network sees them."""
    data = config.data
    if name == "train" and data.scale_jitter is not None:
        least, most = data.scale_jitter
        seen = (
            f"as the network sees them: {least:g} to {most:g} times as large as fits into "
            f"{data.max_side} x {data.max_side}, and cut to that"
        )
        return [*data_page.size_lines(sizes), seen]
    sides = data.short_sides if name == "train" else (data.eval_short_side,)
    return data_page.size_lines(sizes, sides, data.max_side)


def check_box_domain(config: Config) -> list[str]:
    """Print what box-domain pre-training would read; returns the problems."""
    data, split, limit = config.data, config.data.train, config.box_domain.max_proposals
    print(f"\ntrain: {split.images}, {split.proposals or 'boxes are searched for'}")
    problems = _refusal(partial(adapter_class, config.model.detector))
    if split.images is None or split.proposals is None:
        unlabelled = replace(data, train=replace(split, annotations=None))
        images, more = _listed_images(replace(config, data=unlabelled), False)
        more += _schedule_problems(config, [1.0] * len(images))
        return problems + more + _too_few(config, len(images))

    def dataset(path: Path) -> CocoDataset:
        proposals = replace(split, proposals=str(path))
        return build_two_views(replace(data, train=proposals), limit, config.pretrains_masks).source

    judged = judge(dataset, dataset, split.proposals)
    problems += _all_problems(judged, split.proposals, "train")
    coco = judged.accepted
    if coco is None:
        return problems
    numbers = coco.records.box_counts().tolist()
    lines = [
        *label_lines(coco),
        data_page.per_image_line([min(n, limit or n) for n in numbers], "proposals used"),
        *_size_lines(config, "train", _sizes(coco)),
    ]
    say_all(lines)
    problems += print_positives(config, coco, 1, limit)
    problems += _schedule_problems(config, coco.aspect_ratios)
    return problems + _too_few(config, len(coco))


def check_image_domain(config: Config) -> list[str]:
    """Print what image-domain pre-training would read; returns the problems."""
    image = config.image
    print(f"\ntrain: {config.data.train.images}")
    images, problems = _listed_images(config, image.spec.needs_classes)
    problems += _refusal(
        partial(image.groups_per_process, config.model.backbone, config.data.batch_size)
    )
    problems += _schedule_problems(config, [1.0] * len(images))
    if image.method == "moco_v2" and image.moco.queue > len(images) > 0:
        print(f"note: image.moco.queue is {image.moco.queue:,}, set it below the number of images")
    if image.probe_train is not None and image.probe_val is not None:
        probe = (image.probe_train, image.probe_val)
        print(f"\nprobe: {', '.join(probe)}")
        problems += _refusal(partial(ProbeData.read, *probe, config.data.reading))
    return problems


CHECKS: dict[str, Callable[[Config], list[str]]] = {
    "finetune": check_finetuning,
    "box": check_box_domain,
    "image": check_image_domain,
}
TITLES = {
    "finetune": "fine-tuning",
    "box": "box-domain pre-training",
    "image": "image-domain pre-training",
}


def print_positives(
    config: Config, coco: CocoDataset, num_classes: int, limit: int | None = None
) -> list[str]:
    """Print how many positives boxes of each size get; returns the problems of `model.*`."""
    name, data = config.model.detector, config.data
    try:
        detector = detector_without_weights(config.model, num_classes)
    except ValueError as error:
        return [str(error)]
    if name in ASSIGNERS:
        sides = (data.short_sides, data.max_side)
        print("\n".join(data_page.positives_lines(detector, name, coco.records, *sides, limit)))
    else:
        print(f"{name} matches boxes with queries, so that boxes of any size have a positive")
    return []


def print_perfect_score(annotations: str, crowd: str) -> list[str]:
    """Score the labels against themselves, as an evaluation would score detections."""
    try:
        content = load_coco(annotations, crowd)
    except DataError:
        return []  # known by now
    found = _perfect_detections(content)
    try:
        score = average_precision(content, found)["AP"]
    except Exception as error:  # whatever it is, it would end the run after the training
        return [f"{annotations}: cannot be evaluated ({type(error).__name__}: {error})"]
    if score is None:
        return [f"{annotations}: has no object to find, so there is no AP; label some"]
    print(f"the labels scored against themselves: AP {score:.1f}")
    return []


def _perfect_detections(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The usable boxes of a COCO JSON as results; like detections, they lie in their image."""
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in content["images"]}
    return [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": part_inside(entry["bbox"], *sizes[entry["image_id"]]),
            "score": 1.0,
        }
        for entry in content["annotations"]
        if box_problem(entry["bbox"], *sizes[entry["image_id"]]) is None
    ]


def _listed_images(config: Config, with_classes: bool) -> tuple[Sequence[str], list[str]]:
    """Print a section about images without boxes; returns their paths and the problems."""
    folder = config.data.train.images
    try:
        images = build_image_files(config.data, with_classes)
    except DataError as error:
        problems = [str(error)]
        try:
            files = list_images(folder) if folder is not None else []
        except DataError:
            files = []
        # The error names one file; each is named by reading them all.
        read = partial(_read_file, folder, files, config.data.reading)
        return files, decode(read, len(files))[1] or problems
    read = partial(_read_file, images.root, images.files, images.reading)
    sizes, problems = decode(read, len(images), skip=images.reading.on_bad_image == "skip")
    print(count(len(images), "image"))
    say_all(images.notes)
    if images.labels:
        say_all(data_page.class_lines(images.classes, images.labels))
    if sizes:
        print("\n".join(data_page.size_lines(sizes)))
    return images.files, problems


def _schedule_problems(config: Config, aspect_ratios: Sequence[float]) -> list[str]:
    """Why one process cannot train for the time that the config gives."""
    if not aspect_ratios:
        return []
    sampler = GroupedBatchSampler(aspect_ratios, config.data.batch_size)
    steps = sampler.steps_per_epoch / config.optim.accumulate
    return _refusal(partial(Schedule.build, config.schedule, config.optim.lr, steps))


def _too_few(config: Config, images: int) -> list[str]:
    batch = config.data.batch_size
    if images >= batch:
        return []
    return [f"data.train has {images} images, fewer than data.batch_size={batch}; lower it"]


def _refusal(build: Callable[[], object]) -> list[str]:
    """Why something cannot be built."""
    try:
        build()
    except ValueError as error:
        return [str(error)]
    return []


def _all_problems(judged: Judged[CocoDataset], annotations: str, name: str) -> list[str]:
    """What is refused, and what cannot be decoded."""
    coco = judged.accepted
    problems = list(judged.problems)
    if not judged.complete:
        problems.append(f"{annotations}: there may be more; the search ended after {MOST} images")
    if coco is not None:
        coco.annotations = Path(annotations)  # its messages name the file itself
        skip = coco.reading.on_bad_image == "skip"
        problems += decode(lambda index: coco.read(index)[0], len(coco), name, skip)[1]
    return problems


def decode(
    read: Callable[[int], Image.Image], images: int, name: str = "train", skip: bool = False
) -> tuple[list[tuple[int, int]], list[str]]:
    """Decode every image, in threads.

    Args:
        read: decodes the image of an index.
        images: their number.
        name: of the split, for the progress bar.
        skip: training would skip images with unusable content: they are printed, and no problem.

    Returns:
        (height, width) of each image that can be read; why the others cannot.
    """

    def attempt(index: int) -> tuple[int, int] | DataError:
        try:
            image = read(index)
        except DataError as error:
            return error
        return image.height, image.width

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(
            tqdm(
                pool.map(attempt, range(images)),
                f"decode {name}",
                images,
                unit="image",
                leave=False,
            )
        )
    problems = []
    for error in results:
        if skip and isinstance(error, BadImage):
            print(f"skipped: {error}")
        elif isinstance(error, DataError):
            problems.append(str(error))
    return [result for result in results if isinstance(result, tuple)], problems


def _read_file(
    folder: Path, files: Sequence[str], reading: ImageReading, index: int
) -> Image.Image:
    return read_image(Path(folder) / files[index], reading)


def _paths(coco: CocoDataset) -> set[str]:
    return {os.path.realpath(coco.images / file) for file in coco.records.file_names}


def _sizes(coco: CocoDataset) -> list[tuple[int, int]]:
    return [(height, width) for height, width in coco.records.sizes.tolist()]
