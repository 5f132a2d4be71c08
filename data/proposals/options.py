"""The options of `python -m data.proposals`."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

import torch

from data.images import AS_STORED, EXIF, MAX_PIXELS
from data.proposals.box_filter import parse_filter
from data.proposals.propose import ProposalSettings
from data.selective_search import SEARCHES

DEFAULT_FILTER, DEFAULT_NMS = "ratio3size0008", 0.5  # for every source but labels


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data.proposals",
        description="Propose object boxes for images without labels and write them as COCO JSON.",
        epilog="The same command resumes a run that was stopped or killed; it searches nothing if "
        "FILE is there already, and --recall and --draw then use its boxes. Exit status: 0 all "
        "went well, 1 bad data (also if images were left out without --skip-bad), 2 bad option.",
    )
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of the images")
    add("--output", required=True, metavar="FILE", help="COCO file to write, see --format")
    add(
        "--format",
        choices=("json", "packed"),
        default="json",
        help="packed: arrays in one file, a tenth as long, that training opens at once, instead of "
        "a COCO JSON that other programs read (%(default)s)",
    )
    add("--annotations", metavar="FILE", help="COCO JSON whose images (and ids) are used")
    add(
        "--source",
        default="search",
        help="search; gt: the boxes of --annotations as they are, without classes; or FILE.json, "
        "COCO results of any detector on the images of --annotations (%(default)s)",
    )
    add("--filter", help=f"ratio<R>size<AABB> or none ({DEFAULT_FILTER}; with --source gt: none)")
    add(
        "--min-side",
        type=float,
        default=32.0,
        metavar="PX",
        help="shortest side the filter passes, if the longer image side is 640 (%(default)s)",
    )
    add(
        "--nms",
        type=float,
        metavar="IOU",
        help=f"1 turns it off ({DEFAULT_NMS}; with --source gt: 1)",
    )
    add("--max-boxes", type=int, metavar="N", help="keep the N best of each image")
    add(
        "--masks",
        action="store_true",
        help="give each box a mask: the region of the search that it was drawn around, or what "
        "--source has as 'segmentation'",
    )
    add(
        "--search",
        choices=tuple(SEARCHES),
        default="thorough",
        help="fast takes a quarter of the time and finds fewer objects (%(default)s)",
    )
    add(
        "--search-side",
        type=int,
        default=320,
        metavar="PX",
        help="shrink larger images to this longer side for the search (%(default)s)",
    )
    add(
        "--exif",
        choices=EXIF,
        default=AS_STORED.exif,
        help="apply turns images as their EXIF orientation says; as data.exif (%(default)s)",
    )
    add(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become black and white in images of more than 8 bits per channel; as "
        "data.value_range (a fixed range for each kind of file)",
    )
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="width x height of the largest image that is read; as data.max_pixels (%(default)s)",
    )
    add(
        "--allow-outside",
        action="store_true",
        help="let --annotations name images outside of DIR; as data.allow_outside",
    )
    add("--recall", metavar="FILE", help="COCO JSON with objects; print how many the boxes cover")
    add("--draw", metavar="DIR", help="write pictures of 12 images with their 30 best boxes")
    add(
        "--font",
        metavar="FILE",
        help="TrueType or OpenType file for the numbers of the best boxes in the pictures",
    )
    add(
        "--skip-bad",
        action="store_true",
        help="exit with status 0 even if images had to be left out because they can't be used",
    )
    add(
        "--workers",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="processes or, with --device cuda, threads that decode (all cores)",
    )
    add(
        "--batch",
        type=int,
        metavar="N",
        help="images searched together, at most; changes only the speed (16; with --device cuda "
        "256, or as many as have 8 million pixels after shrinking)",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to search (%(default)s)")
    return parser.parse_args(arguments)


def read_settings(options: argparse.Namespace) -> ProposalSettings:
    """The settings of the search.

    Raises:
        ValueError: an option is out of range, lacks another one, or asks for a missing GPU.
    """
    lowest = {"min_side": 0, "nms": 0, "max_boxes": 1, "search_side": 1, "workers": 1, "batch": 1}
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} {value} is too small or not a number; use at least {least}")
    if options.source != "search" and options.annotations is None:
        raise ValueError(
            f"--source {options.source} needs --annotations FILE, which lists the images; "
            "detections.json from aligndet.predict can be both"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU; use --device cpu")
    labels = options.source == "gt"  # taken as they are, unless an option says otherwise
    filter_name, nms_iou = options.filter, options.nms
    if filter_name is None:
        filter_name = "none" if labels else DEFAULT_FILTER
    if nms_iou is None:
        nms_iou = 1.0 if labels else DEFAULT_NMS
    box_filter = parse_filter(filter_name, options.min_side)
    return ProposalSettings(
        box_filter,
        nms_iou,
        options.max_boxes,
        options.search,
        options.search_side,
        options.masks,
    )
