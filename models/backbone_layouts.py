"""How other projects name a backbone's weights, and how their names become ours.

We use torchvision's names, as most projects do, after a prefix that `models/backbone_branches.py`
finds. A `Naming` is for those whose names differ; a `Project` only tells which one wrote a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from models.mobilenet_v2 import SETTINGS
from models.renaming import Names
from models.swin_layouts import MICROSOFT_SWIN, MM_SWIN, TIMM_SWIN, from_unfolded

NORM = "(weight|bias|running_mean|running_var|num_batches_tracked)"
LAST = 1 + sum(count for _, _, count, _ in SETTINGS)  # MobileNetV2's last layer, features[18]


def block(stage: int, index: int) -> int:
    """Index in MobileNetV2's `features` of block `index` of stage `stage`, both from 0."""
    return 1 + sum(count for _, _, count, _ in SETTINGS[:stage]) + index


def in_block(layer: str, first_stage: int) -> Callable[[re.Match], str]:
    """Our name for m[3] in `layer` of block m[2] of stage m[1]; their stages count from
    `first_stage`."""
    return lambda m: f"features.{block(int(m[1]) - first_stage, int(m[2]))}.conv.{layer}.{m[3]}"


def in_stage(template: str, shift: int) -> Callable[[re.Match], str]:
    """Our name for part of a ResNet; `template` has {0}, our number of stage m[1], which is theirs
    plus `shift`, {1} for m[2], the block, and so on."""
    return lambda m: "layer" + template.format(int(m[1]) + shift, *m.groups()[1:])


def from_zero(template: str) -> Callable[[re.Match], str]:
    """The same for stages m[1] and layers m[3] that count from 0; ours count from 1."""
    return lambda m: "layer" + template.format(int(m[1]) + 1, m[2], int(m[3]) + 1, *m.groups()[3:])


# Their stages 1 to 6 expand, filter and project; stage 0 only filters and projects.
TIMM_MOBILENET_V2: Names = (
    (r"conv_stem\.weight", "features.0.0.weight"),
    (rf"bn1\.{NORM}", r"features.0.1.\1"),
    (r"blocks\.(0)\.(\d+)\.conv_dw\.(weight)", in_block("0.0", 0)),
    (rf"blocks\.(0)\.(\d+)\.bn1\.{NORM}", in_block("0.1", 0)),
    (r"blocks\.(0)\.(\d+)\.conv_pw\.(weight)", in_block("1", 0)),
    (rf"blocks\.(0)\.(\d+)\.bn2\.{NORM}", in_block("2", 0)),
    (r"blocks\.([1-6])\.(\d+)\.conv_pw\.(weight)", in_block("0.0", 0)),
    (rf"blocks\.([1-6])\.(\d+)\.bn1\.{NORM}", in_block("0.1", 0)),
    (r"blocks\.([1-6])\.(\d+)\.conv_dw\.(weight)", in_block("1.0", 0)),
    (rf"blocks\.([1-6])\.(\d+)\.bn2\.{NORM}", in_block("1.1", 0)),
    (r"blocks\.([1-6])\.(\d+)\.conv_pwl\.(weight)", in_block("2", 0)),
    (rf"blocks\.([1-6])\.(\d+)\.bn3\.{NORM}", in_block("3", 0)),
    (r"conv_head\.weight", f"features.{LAST}.0.weight"),
    (rf"bn2\.{NORM}", rf"features.{LAST}.1.\1"),
)
MM_MOBILENET_V2: Names = (
    (r"conv1\.conv\.weight", "features.0.0.weight"),
    (rf"conv1\.bn\.{NORM}", r"features.0.1.\1"),
    (r"layer([1-7])\.(\d+)\.conv\.0\.conv\.(weight)", in_block("0.0", 1)),
    (rf"layer([1-7])\.(\d+)\.conv\.0\.bn\.{NORM}", in_block("0.1", 1)),
    (r"layer(1)\.(\d+)\.conv\.1\.conv\.(weight)", in_block("1", 1)),
    (rf"layer(1)\.(\d+)\.conv\.1\.bn\.{NORM}", in_block("2", 1)),
    (r"layer([2-7])\.(\d+)\.conv\.1\.conv\.(weight)", in_block("1.0", 1)),
    (rf"layer([2-7])\.(\d+)\.conv\.1\.bn\.{NORM}", in_block("1.1", 1)),
    (r"layer([2-7])\.(\d+)\.conv\.2\.conv\.(weight)", in_block("2", 1)),
    (rf"layer([2-7])\.(\d+)\.conv\.2\.bn\.{NORM}", in_block("3", 1)),
    (r"conv2\.conv\.weight", f"features.{LAST}.0.weight"),
    (rf"conv2\.bn\.{NORM}", rf"features.{LAST}.1.\1"),
)
DETECTRON2_RESNET: Names = (
    (r"stem\.conv1\.weight", "conv1.weight"),
    (rf"stem\.conv1\.norm\.{NORM}", r"bn1.\1"),
    (r"res([2-5])\.(\d+)\.conv(\d)\.weight", in_stage("{}.{}.conv{}.weight", -1)),
    (rf"res([2-5])\.(\d+)\.conv(\d)\.norm\.{NORM}", in_stage("{}.{}.bn{}.{}", -1)),
    (r"res([2-5])\.(\d+)\.shortcut\.weight", in_stage("{}.{}.downsample.0.weight", -1)),
    (rf"res([2-5])\.(\d+)\.shortcut\.norm\.{NORM}", in_stage("{}.{}.downsample.1.{}", -1)),
)
TRANSFORMERS_RESNET: Names = (
    (r"embedder\.embedder\.convolution\.weight", "conv1.weight"),
    (rf"embedder\.embedder\.normalization\.{NORM}", r"bn1.\1"),
    (
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution\.weight",
        from_zero("{}.{}.conv{}.weight"),
    ),
    (
        rf"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization\.{NORM}",
        from_zero("{}.{}.bn{}.{}"),
    ),
    (
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution\.weight",
        in_stage("{}.{}.downsample.0.weight", 1),
    ),
    (
        rf"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization\.{NORM}",
        in_stage("{}.{}.downsample.1.{}", 1),
    ),
)
# nn.Sequential(*model.children()): conv1, bn1, relu, maxpool, layer1 to layer4.
SEQUENTIAL_RESNET: Names = (
    (r"0\.weight", "conv1.weight"),
    (rf"1\.{NORM}", r"bn1.\1"),
    (r"([4-7])\.(\d+\..+)", in_stage("{}.{}", -3)),
)
SEQUENTIAL_MOBILENET_V2: Names = ((r"(\d+\..+)", r"features.\1"),)
AS_OURS: Names = ((r"(.+)", r"\1"),)


@dataclass(frozen=True)
class Naming:
    """One way to name a backbone's layers."""

    name: str  # who uses it
    names: Names
    convert: Callable[[str, Tensor], Tensor] | None = None  # weights in another order; by our name


OURS = Naming("torchvision's names", AS_OURS)
OTHERS = (
    Naming("a ResNet in nn.Sequential", SEQUENTIAL_RESNET),
    Naming("a MobileNetV2 in nn.Sequential", SEQUENTIAL_MOBILENET_V2),
    Naming("detectron2's ResNet", DETECTRON2_RESNET),
    Naming("transformers' ResNet", TRANSFORMERS_RESNET),
    Naming("mmpretrain's MobileNetV2", MM_MOBILENET_V2),
    Naming("timm's MobileNetV2", TIMM_MOBILENET_V2),
    Naming("Microsoft's Swin or SimMIM", MICROSOFT_SWIN),
    Naming("timm's Swin", TIMM_SWIN),
    Naming("mmdetection's or mmpretrain's Swin", MM_SWIN, from_unfolded),
)


@dataclass(frozen=True)
class Project:
    """Who wrote a file in our naming, told by its prefix and by another key."""

    name: str
    prefix: str  # pattern of the whole prefix
    marker: str = ""  # start of another key, which tells projects with the same prefix apart


# The first that fits wins. Projects that use the same names share a line.
PROJECTS = (
    Project("DenseCL, its query encoder", r"encoder_q\.0\.", "queue2"),
    Project("OpenSelfSup or DenseCL, its query encoder", r"(module\.)?encoder_q\.0\."),
    Project("MoCo v1 or v2, its query encoder", r"(module\.)?encoder_q\."),
    Project("MoCo v3, its base encoder", r"(module\.)?base_encoder\."),
    Project("PixPro, its online encoder", r"module\.encoder\.", "module.encoder_k."),
    Project("SimSiam or PixPro, its encoder", r"module\.encoder\."),
    Project("DINO", r"module\.backbone\.", "module.head."),
    Project("Barlow Twins, VICReg or DINO", r"module\.backbone\."),
    Project("SwAV or DeepCluster v2", r"module\.", "module.prototypes."),
    Project("SwAV or DeepCluster v2", "", "prototypes."),
    Project("torchvision's names in DataParallel", r"(module\.)+"),
    Project("VISSL", r"(.*\.)?_feature_blocks\."),
    Project("a run of this project, its online encoder", r"online\.backbone\."),
    Project("a run of this project, its classifier", r"classifier\.backbone\."),
    Project("a detector of this project", r"backbone\.", "neck.lateral."),
    Project("a detector of torchvision", r"backbone\.body\."),
    Project("mmselfsup, mmpretrain, DenseCL or DINO", r"backbone\."),
)


def describe(naming: Naming, prefix: str, keys: Iterable[str]) -> str:
    """Who names weights like this, for messages; `keys` are all names beside them."""
    name = naming.name
    if naming is OURS:
        keys = list(keys)
        fitting = (
            project.name
            for project in PROJECTS
            if re.fullmatch(project.prefix, prefix)
            and any(key.startswith(project.marker) for key in keys)
        )
        name = next(fitting, name)
    return f"{name} ({prefix or 'no prefix'})"
