"""The options of `python -m data.clusters`; those that are not given come from the config, if there
is one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aligndet.box_features import LEVELS, FeatureSettings
from aligndet.clusters import ClusterSettings
from aligndet.config import Config, build_config, load_config
from aligndet.overrides import apply_override
from data.drawing import check_apart
from data.images import ImageReading
from models.backbone import BACKBONES

PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Request:
    """What one call is asked for."""

    images: str
    proposals: Path
    output: Path
    sheet: Path | None
    packed: bool
    backbone: str
    weights: str
    partial: bool  # see `load_backbone_weights`
    settings: ClusterSettings
    reading: ImageReading
    bad_boxes: str
    crowd: str
    allow_outside: bool
    masks: bool  # keep those of the boxes
    batch_size: int
    workers: int
    device: str


def feature_settings(config: Config) -> FeatureSettings:
    """The features that the clusters of a config's proposals are made of."""
    return FeatureSettings(
        short_side=config.data.eval_short_side,
        max_side=config.data.max_side,
        max_boxes=config.box_domain.max_proposals,
        amp=config.amp,
    )


def read_request(arguments: Sequence[str] | None = None) -> Request:
    """Read the command line.

    Raises:
        ValueError: something is missing, out of range, or would overwrite its input.
    """
    args = parse(arguments)
    config = config_of(args)
    data, model = config.data, config.model
    required(data.train.images, "--images DIR", "data.train.images")
    required(data.train.proposals, "--proposals FILE", "data.train.proposals")
    required(model.backbone_weights, "--weights FILE", "model.backbone_weights")
    features = replace(feature_settings(config), levels=tuple(args.levels.split(",")))
    settings = ClusterSettings(args.clusters, args.components, args.sample, args.seed, features)
    request = Request(
        images=data.train.images,
        proposals=Path(data.train.proposals),
        output=Path(args.output),
        sheet=None if args.sheet is None else Path(args.sheet),
        packed=args.format == "packed",
        backbone=model.backbone,
        weights=model.backbone_weights,
        partial=model.backbone_partial,
        settings=settings,
        reading=data.reading,
        bad_boxes=data.bad_boxes,
        crowd=data.crowd,
        allow_outside=data.allow_outside,
        masks=args.masks or config.pretrains_masks,
        batch_size=data.batch_size,
        workers=data.workers,
        device=config.device,
    )
    check_paths(request)
    return request


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options as they are given."""
    parser = argparse.ArgumentParser(
        prog="python -m data.clusters",
        description="Put proposals into clusters by a backbone's features of them.",
        epilog="key=value changes the config, or the defaults that a config starts from: "
        "data.short_sides=[480] for smaller images, box_domain.max_proposals for the boxes of an "
        "image (50; null for all), data.batch_size, data.workers, device, amp.",
    )
    add = parser.add_argument
    # fmt: off
    add("--config", metavar="FILE", help="YAML of the pre-training")
    add("--images", metavar="DIR", help="folder of the images (data.train.images)")
    add("--proposals", metavar="FILE", help="of data.proposals (data.train.proposals)")
    add("--backbone", choices=sorted(BACKBONES), help="(model.backbone)")
    add("--weights", metavar="FILE", help="of the backbone (model.backbone_weights)")
    add("--output", required=True, metavar="FILE", help="COCO file to write, see --format")
    add("--format", choices=("json", "packed"), default="json", help="as of data.proposals")
    add("--masks", action="store_true", help="keep the masks of the boxes, as Mask R-CNN needs")
    add("--sheet", metavar="FILE.jpg", help="also draw 12 clusters with 16 boxes each")
    add("--clusters", type=int, default=256, metavar="K", help="how many (%(default)s)")
    add("--levels", default="c4,c5", metavar="C4,C5",
        help=f"maps of the backbone that features come from, of {', '.join(LEVELS)} (%(default)s)")
    add("--components", type=int, default=256, metavar="D",
        help="principal components of the features that are clustered (%(default)s)")
    add("--sample", type=int, default=200_000, metavar="N",
        help="boxes that the clusters are found on (%(default)s)")
    add("--seed", type=int, default=0, help="of the sample and of the first centres (%(default)s)")
    # fmt: on
    add("overrides", nargs="*", metavar="key=value", help="changes of the config")
    args = parser.parse_intermixed_args(arguments)
    args.levels = args.levels.lower()
    return args


def config_of(args: argparse.Namespace) -> Config:
    """The config, or the defaults, with the options put into it.

    Raises:
        ValueError: see `load_config`.
    """
    given = {
        "data.train.images": args.images and os.path.abspath(args.images),  # not below data.root
        "data.train.proposals": args.proposals and os.path.abspath(args.proposals),
        "model.backbone": args.backbone,
        "model.backbone_weights": args.weights,
    }
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    if args.config is not None:
        return load_config(args.config, [*options, *args.overrides])
    content: dict[str, Any] = {"output_dir": "none"}
    for override in [*options, *args.overrides]:
        apply_override(content, override, Config)
    return build_config(content)


def required(value: str | None, option: str, key: str) -> None:
    """Raise a ValueError if an input is not given."""
    if value is None:
        raise ValueError(f"{key} is not set; give {option}, or --config FILE with that key")


def check_paths(request: Request) -> None:
    """Find out before the work what could not be written, or would take the place of an input.

    Raises:
        ValueError: names the option or the file.
    """
    output, sheet = request.output, request.sheet
    if output.is_dir():
        raise ValueError(f"{output}: is a directory; give --output the name of a file")
    if output.resolve() == request.proposals.resolve():
        raise ValueError(f"{output}: would overwrite --proposals; give another --output")
    if sheet is not None:
        if sheet.suffix.lower() not in PICTURES:
            raise ValueError(f"--sheet {sheet}: give a name that ends in .jpg or .png")
        check_apart(Path(request.images), [sheet])
