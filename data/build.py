"""Build datasets from the `data` section of a config."""

from __future__ import annotations

import os
from dataclasses import asdict, astuple, dataclass, field, replace

from data.coco import CocoDataset
from data.coco_json import CROWD
from data.errors import DataError
from data.image_folder import ImageFiles, images_of_classes, images_of_coco, images_of_tree
from data.images import MAX_PIXELS, ImageReading
from data.jitter import ScaleJitter
from data.proposals.cache import ProposalCache
from data.proposals.propose import ProposalSettings
from data.proposals.searched_images import SearchedImages
from data.transforms import Augment
from data.views import BoxSource, DetectionDataset, TwoViewDataset


@dataclass(frozen=True)
class SplitConfig:
    """`data.train` and `data.val`."""

    images: str | None = None  # folder of the images
    annotations: str | None = None  # COCO JSON with labelled boxes (fine-tuning, evaluation)
    proposals: str | None = None  # COCO JSON of `python -m data.proposals` (pre-training);
    # null: the search finds boxes when an image is first read, see data.proposal_cache


@dataclass(frozen=True)
class DataConfig:
    """The `data` section."""

    root: str | None = None  # folder that relative paths of train and val start from
    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    proposal_cache: str = "datasets/proposal_cache"  # folder of boxes found while training
    batch_size: int = 2  # images per process and step
    workers: int = 2  # loader processes per process; 0 loads in the training process
    short_sides: tuple[int, ...] = (800,)  # one is drawn for each view
    max_side: int = 1333  # cap of the long side
    val_short_side: int | None = None  # null: the largest of short_sides
    # Large-scale jitter in training: [0.1, 2.0] scales an image by a number from 0.1 to 2 (1: it
    # fits into a square of max_side) and cuts it to that square; short_sides are not used.
    scale_jitter: tuple[float, ...] | None = None
    flip: float = 0.5  # probability of a horizontal flip in training
    photometric: bool = False  # fine-tuning only; pre-training's views always have it
    skip_empty: bool = True  # leave images without boxes out of fine-tuning
    bad_boxes: str = "error"  # or drop: boxes without area or outside the image
    crowd: str = "ignore"  # or keep: boxes with iscrowd 1 are ordinary ones, in evaluation as well
    allow_outside: bool = False  # let annotations and proposals name files outside of `images`
    exif: str = "stored"  # or apply: turn images as their EXIF orientation says, as viewers do
    value_range: tuple[float, ...] | None = None  # [low, high]: values that become black and white
    # in images of more than 8 bits per channel; null: a range for each kind of file
    # Decode JPEGs at a half, a quarter or an eighth where views are as small: quicker, but pixels
    # differ a little, see docs/loader.md. No effect where the search finds boxes while training.
    scaled_decoding: bool = False
    max_pixels: int = MAX_PIXELS  # width x height of an image; 4 bytes each in every worker
    on_bad_image: str = "error"  # or skip: go on without damaged images, see data/bad_images.py;
    # in val, objects in them count as not found

    def __post_init__(self) -> None:
        # Worded as by models.checks.require_range, which data/ does not import.
        least = {"batch_size": 1, "workers": 0, "max_side": 1, "val_short_side": 1}
        for key, bound in least.items():
            value = getattr(self, key)
            if value is not None and value < bound:
                raise ValueError(f"data.{key} is {value}; it must be at least {bound}")
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError("data.short_sides must list at least one size, each at least 1")
        jitter = self.scale_jitter
        if jitter is not None and not (len(jitter) == 2 and 0 < jitter[0] <= jitter[1]):
            raise ValueError(
                f"data.scale_jitter is {list(jitter)}; give the least and the largest scale, such "
                "as [0.1,2.0]"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.flip is {self.flip}; it must be at least 0 and at most 1")
        if self.bad_boxes not in ("error", "drop"):
            raise ValueError(f"data.bad_boxes is {self.bad_boxes!r}; set it to error or drop")
        if self.crowd not in CROWD:
            raise ValueError(f"data.crowd is {self.crowd!r}; set it to {' or '.join(CROWD)}")
        try:
            _ = self.reading
        except ValueError as error:
            raise ValueError(f"data.{error}") from None

    def rooted(self) -> DataConfig:
        """The same with `root` put before the paths of train and val."""
        if self.root is None:
            return self
        splits = {
            name: SplitConfig(**{k: v and os.path.join(self.root, v) for k, v in asdict(s).items()})
            for name, s in (("train", self.train), ("val", self.val))
        }
        return replace(self, root=None, **splits)

    @property
    def reading(self) -> ImageReading:
        """How all images are read."""
        return ImageReading(self.exif, self.value_range, self.max_pixels, self.on_bad_image)

    def seen_at(self, short_side: int) -> tuple[int, int] | None:
        """The size at which images of views of this short side may be decoded; None: whole."""
        return (short_side, self.max_side) if self.scaled_decoding else None

    @property
    def seen_in_training(self) -> tuple[int, int] | None:
        """The same for training; whole where a part may be enlarged."""
        return self.seen_at(max(self.short_sides)) if self.scale_jitter is None else None

    @property
    def eval_short_side(self) -> int:
        """Short side of images in evaluation."""
        return self.val_short_side or max(self.short_sides)


def _required(split: SplitConfig, name: str, key: str) -> str:
    value = getattr(split, key)
    if value is None:
        raise DataError(f"data.{name}.{key} is not set; add it to the config or the command line")
    return value


def build_two_views(
    config: DataConfig, max_proposals: int | None, with_masks: bool = False
) -> TwoViewDataset:
    """Dataset for box-domain pre-training: images and their proposals, no labels.

    Without a file of proposals the search finds the boxes when an image is first read.
    """
    images = _required(config.train, "train", "images")
    source: BoxSource
    if config.train.proposals is not None:
        source = CocoDataset(
            images,
            config.train.proposals,
            bad_boxes=config.bad_boxes,
            crowd=config.crowd,
            reading=config.reading,
            allow_outside=config.allow_outside,
            seen_at=config.seen_in_training,
            with_masks=with_masks,
        )
    else:
        settings = ProposalSettings(masks=with_masks)
        cache = ProposalCache(config.proposal_cache, settings, config.reading)
        source = SearchedImages(images, cache)
    return TwoViewDataset(source, training_view(config, photometric=True), max_proposals)


def build_image_files(config: DataConfig, with_classes: bool) -> ImageFiles:
    """Images for image-domain pre-training: those that `data.train.annotations` lists, if it is
    set, else those below `data.train.images`; with classes, its subfolders are the classes."""
    images = _required(config.train, "train", "images")
    if with_classes:
        return images_of_classes(images, config.reading)
    if config.train.annotations is not None:
        return images_of_coco(
            images, config.train.annotations, config.reading, config.allow_outside
        )
    return images_of_tree(images, config.reading)


def build_train(config: DataConfig, with_masks: bool = False) -> DetectionDataset:
    """Dataset for fine-tuning."""
    images = _required(config.train, "train", "images")
    annotations = _required(config.train, "train", "annotations")
    coco = CocoDataset(
        images, annotations, config.skip_empty, config.bad_boxes, config.crowd, config.reading,
        config.allow_outside, config.seen_in_training, with_masks,
    )
    return DetectionDataset(coco, training_view(config, config.photometric))


def training_view(config: DataConfig, photometric: bool) -> Augment:
    """What makes a view of an image in training."""
    augment = Augment(config.short_sides, config.max_side, config.flip, photometric)
    if config.scale_jitter is None:
        return augment
    return ScaleJitter(*astuple(augment), scales=config.scale_jitter)


def build_val(config: DataConfig) -> DetectionDataset:
    """Dataset for evaluation: every image, only resized."""
    images = _required(config.val, "val", "images")
    annotations = _required(config.val, "val", "annotations")
    # Evaluation leaves bad boxes out as well, so they are no reason to stop here.
    coco = CocoDataset(
        images, annotations, bad_boxes="drop", crowd=config.crowd, reading=config.reading,
        allow_outside=config.allow_outside, seen_at=config.seen_at(config.eval_short_side),
    )
    return DetectionDataset(coco, Augment((config.eval_short_side,), config.max_side, flip=0.0))
