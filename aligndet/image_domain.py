"""Image-domain pre-training (AlignDet, section 3.2): the backbone learns from whole images, before
neck and head learn from boxes.

The paper takes backbones that others have pre-trained; here are three ways to train one: `moco_v2`
and `simmim` without labels, `supervised` with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from aligndet import dist
from aligndet.moco import MoCo, MoCoConfig
from aligndet.simmim import SimMIM, SimMIMConfig
from aligndet.supervised import Supervised
from data.crops import RandomCrop
from data.image_folder import ImageFiles
from data.patch_masks import RandomPatches
from models.backbone import BACKBONES, WITHOUT_BATCH_NORM, random_backbone
from models.backbone_base import StagedBackbone
from models.backbone_weights import load_backbone_weights
from models.checks import require_choice, require_range
from models.detector import ModelConfig
from models.grouped_batch_norm import GroupedBatchNorm2d


@dataclass(frozen=True)
class ImageDomainConfig:
    """The `image` section."""

    method: str = "moco_v2"  # or simmim, supervised
    crop_size: int = 224  # pixels of a view's sides
    # Of a crop, fraction of the image; null: 0.2, simmim 0.67, supervised 0.08.
    least_area: float | None = None
    blur: float = 0.5  # moco_v2: probability; its strength is meant for crops of 224 px
    # BatchNorm computes its statistics over this many parts of the global batch, at least one per
    # process. null: 8 for moco_v2, as on the paper's 8 GPUs; one per process for the others.
    norm_groups: int | None = None
    moco: MoCoConfig = field(default_factory=MoCoConfig)
    simmim: SimMIMConfig = field(default_factory=SimMIMConfig)
    label_smoothing: float = 0.1  # supervised
    # Folders with one subfolder per class: the accuracy of k-NN and of a linear layer on frozen
    # features is measured at the end, and every evaluation.every steps.
    probe_train: str | None = None
    probe_val: str | None = None

    def __post_init__(self) -> None:
        require_choice("image.method", self.method, METHODS)
        require_range("image.crop_size", self.crop_size, least=1)
        require_range("image.norm_groups", self.norm_groups, least=1)
        require_range("image.least_area", self.least_area, above=0, most=1)
        for key in ("blur", "label_smoothing"):
            require_range(f"image.{key}", getattr(self, key), least=0, most=1)
        if self.spec.hides:
            self.simmim.check_crop(self.crop_size)
        if (self.probe_train is None) != (self.probe_val is None):
            raise ValueError("set both image.probe_train and image.probe_val, or neither")

    @property
    def spec(self) -> Method:
        """What the method needs."""
        return METHODS[self.method]

    @property
    def augment(self) -> RandomCrop:
        """The transform that makes a view."""
        least_area = self.spec.least_area if self.least_area is None else self.least_area
        return RandomCrop(self.crop_size, least_area, self.spec.colour, blur=self.blur)

    @property
    def hide(self) -> RandomPatches | None:
        """What draws the patches that a sample hides, if the method hides some."""
        if not self.spec.hides:
            return None
        return RandomPatches(self.crop_size, self.simmim.patch_size, self.simmim.ratio)

    def groups_per_process(self, backbone: str, batch_size: int) -> int:
        """How many parts BatchNorm splits the batch of a process into; 1 if a backbone has none.

        Args:
            backbone: `model.backbone`.
            batch_size: images of a process in one forward pass.

        Raises:
            ValueError: the batch cannot be split into that many parts of at least two images.
        """
        if backbone in WITHOUT_BATCH_NORM:
            return 1
        groups = self.spec.norm_groups if self.norm_groups is None else self.norm_groups
        mine = max(1, groups // dist.world_size())
        if batch_size % mine or batch_size < 2 * mine:
            raise ValueError(
                f"data.batch_size is {batch_size}; BatchNorm splits it into {mine} equal groups of "
                "at least 2 images: change it or image.norm_groups"
            )
        return mine


@dataclass(frozen=True)
class Workload:
    """What a method is built for."""

    images: ImageFiles  # the training images
    step_images: int  # images in one forward pass of all processes


def build_moco(backbone: StagedBackbone, config: ImageDomainConfig, work: Workload) -> MoCo:
    """The task of `moco_v2`."""
    config.moco.check_batch(work.step_images)
    return MoCo(backbone, config.moco)


def build_supervised(
    backbone: StagedBackbone, config: ImageDomainConfig, work: Workload
) -> Supervised:
    """The task of `supervised`."""
    return Supervised(backbone, len(work.images.classes), config.label_smoothing)


def build_simmim(backbone: StagedBackbone, config: ImageDomainConfig, work: Workload) -> SimMIM:
    """The task of `simmim`."""
    return SimMIM(backbone)


ImageTask = MoCo | SimMIM | Supervised


@dataclass(frozen=True)
class Method:
    """What differs between image-domain methods."""

    build: Callable[[StagedBackbone, ImageDomainConfig, Workload], ImageTask]
    least_area: float  # of a crop, fraction of the image, from the method's paper
    views: int = 1  # of each image
    needs_classes: bool = False  # whether it learns from labels
    colour: bool = False  # whether views also change colours
    hides: bool = False  # whether patches of a view are hidden
    norm_groups: int = 1  # parts of the global batch for BatchNorm, at least one per process


METHODS = {
    "moco_v2": Method(build_moco, least_area=0.2, views=2, colour=True, norm_groups=8),
    "simmim": Method(build_simmim, least_area=0.67, hides=True),
    "supervised": Method(build_supervised, least_area=0.08, needs_classes=True),
}


def build_image_domain(
    model: ModelConfig, config: ImageDomainConfig, batch_size: int, images: ImageFiles
) -> ImageTask:
    """The task of a method, with a random backbone or the one of `model.backbone_weights`.

    Args:
        model: its backbone is used.
        config: of the stage.
        batch_size: images per process.
        images: the training images.

    Raises:
        ValueError: an unknown name, a file that does not fit the backbone, or a batch size that
            does not suit the config.
    """
    backbone = build_trained_backbone(
        model.backbone, config.groups_per_process(model.backbone, batch_size)
    )
    if model.checkpoint_activations:
        backbone.checkpoint_activations()
    if model.backbone_weights is not None:
        load_backbone_weights(backbone, model.backbone_weights, model.backbone_partial)
    return config.spec.build(backbone, config, Workload(images, batch_size * dist.world_size()))


def build_trained_backbone(name: str, norm_groups: int) -> StagedBackbone:
    """A random backbone that is trained as a whole, with BatchNorm in groups; `model.norm` and
    `model.frozen_stages` apply to detectors only."""
    require_choice("model.backbone", name, BACKBONES)
    return random_backbone(name, partial(GroupedBatchNorm2d, groups=norm_groups))
