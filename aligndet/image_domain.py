"""Image-domain pre-training (AlignDet, section 3.2): the backbone learns from whole images, before
neck and head learn from boxes.

The paper takes any backbone that others have pre-trained; here are two ways to make one:
``moco_v2`` without labels and ``supervised`` with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from aligndet import dist
from aligndet.moco import MoCo, MoCoConfig
from aligndet.supervised import Supervised
from data.crops import RandomCrop
from data.image_folder import ImageFiles
from models.backbone import BACKBONES
from models.backbone_weights import load_backbone_weights
from models.choices import require_choice
from models.detector import ModelConfig
from models.grouped_batch_norm import GroupedBatchNorm2d
from models.staged import StagedBackbone

METHODS = ("moco_v2", "supervised")
LEAST_AREA = {"moco_v2": 0.2, "supervised": 0.08}  # of a crop, as the methods' papers have it
NORM_GROUPS = {"moco_v2": 8, "supervised": 1}


@dataclass(frozen=True)
class ImageDomainConfig:
    """The ``image`` section."""

    method: str = "moco_v2"  # or supervised
    crop_size: int = 224  # pixels of a view's sides
    least_area: float | None = None  # of a crop, part of the image; null: 0.2, supervised 0.08
    blur: float = 0.5  # moco_v2: probability; its strength is meant for crops of 224 px
    # Parts of the global batch that BatchNorm takes its statistics of, at least one a process.
    # null: 8 for moco_v2, as on the paper's 8 GPUs; for supervised one a process.
    norm_groups: int | None = None
    moco: MoCoConfig = field(default_factory=MoCoConfig)
    label_smoothing: float = 0.1  # supervised
    # Folders with a subfolder a class: the accuracy of k-NN and of a linear layer on frozen
    # features is measured at the end, and every evaluation.every steps.
    probe_train: str | None = None
    probe_val: str | None = None

    def __post_init__(self) -> None:
        require_choice("image.method", self.method, METHODS)
        if self.crop_size < 1:
            raise ValueError(f"image.crop_size is {self.crop_size}; it must be at least 1")
        if self.norm_groups is not None and self.norm_groups < 1:
            raise ValueError(f"image.norm_groups is {self.norm_groups}; it must be at least 1")
        if self.least_area is not None and not 0 < self.least_area <= 1:
            raise ValueError(f"image.least_area is {self.least_area}; it must be in 0..1, not 0")
        for key in ("blur", "label_smoothing"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"image.{key} is {getattr(self, key)}; it must be in 0..1")
        if (self.probe_train is None) != (self.probe_val is None):
            raise ValueError("set both image.probe_train and image.probe_val, or neither")

    @property
    def needs_classes(self) -> bool:
        """Whether the method learns from labels."""
        return self.method == "supervised"

    @property
    def views(self) -> int:
        """How many views of an image the method compares."""
        return 1 if self.method == "supervised" else 2

    @property
    def augment(self) -> RandomCrop:
        """What makes a view."""
        least_area = LEAST_AREA[self.method] if self.least_area is None else self.least_area
        colour = self.method == "moco_v2"
        return RandomCrop(self.crop_size, least_area, colour, blur=self.blur)

    def groups_a_process(self, batch_size: int) -> int:
        """How many parts BatchNorm splits the batch of a process into.

        Raises:
            ValueError: the batch cannot be split so, into parts of at least two images.
        """
        groups = NORM_GROUPS[self.method] if self.norm_groups is None else self.norm_groups
        mine = max(1, groups // dist.world_size())
        if batch_size % mine or batch_size < 2 * mine:
            raise ValueError(
                f"data.batch_size is {batch_size}; BatchNorm splits it into {mine} equal groups of "
                "at least 2 images: change it or image.norm_groups"
            )
        return mine


def build_trained_backbone(name: str, norm_groups: int) -> StagedBackbone:
    """A random backbone all of which is trained, with BatchNorm in groups; ``model.norm`` and
    ``model.frozen_stages`` are for detectors."""
    require_choice("model.backbone", name, BACKBONES)
    return BACKBONES[name](norm=partial(GroupedBatchNorm2d, groups=norm_groups))


def build_image_domain(
    model: ModelConfig, config: ImageDomainConfig, batch_size: int, images: ImageFiles
) -> MoCo | Supervised:
    """The task of a method, with a random backbone or the one of ``model.backbone_weights``.

    Args:
        model: its backbone is used.
        config: of the stage.
        batch_size: images a process.
        images: what is learnt from.

    Raises:
        ValueError: unknown names, a file that does not fit the backbone, or a batch size that does
            not go with the config.
    """
    backbone = build_trained_backbone(model.backbone, config.groups_a_process(batch_size))
    if model.backbone_weights is not None:
        load_backbone_weights(backbone, model.backbone_weights, model.backbone_partial)
    if config.method == "supervised":
        return Supervised(backbone, len(images.classes), config.label_smoothing)
    config.moco.check_batch(batch_size * dist.world_size())
    return MoCo(backbone, config.moco)
