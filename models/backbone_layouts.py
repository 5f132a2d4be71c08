"""How other projects name a backbone's weights, and how their names become ours.

We use torchvision's names. Many projects add a prefix; two name MobileNetV2's layers differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from models.mobilenet_v2 import SETTINGS
from models.renaming import Names, rename

NORM = "(weight|bias|running_mean|running_var|num_batches_tracked)"
LAST = 1 + sum(count for _, _, count, _ in SETTINGS)  # MobileNetV2's last layer, features[18]


def block(stage: int, index: int) -> int:
    """Index in MobileNetV2's `features` of block `index` of stage `stage`, both from 0."""
    return 1 + sum(count for _, _, count, _ in SETTINGS[:stage]) + index


def in_block(layer: str, first_stage: int) -> Callable[[re.Match], str]:
    """Our name for m[3] in `layer` of block m[2] of stage m[1]; their stages count from
    `first_stage`."""
    return lambda m: f"features.{block(int(m[1]) - first_stage, int(m[2]))}.conv.{layer}.{m[3]}"


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
AS_OURS: Names = ((r"(.+)", r"\1"),)


@dataclass(frozen=True)
class Layout:
    """One way to name a backbone's weights."""

    name: str  # who uses it
    prefix: str  # before all names
    names: Names = AS_OURS  # for what follows the prefix
    marker: str = ""  # start of another key, which tells layouts with the same prefix apart

    def renamed(self, keys: Iterable[str]) -> dict[str, str]:
        """Our names for the keys that have one in this layout; empty if the marker is missing."""
        keys = list(keys)
        if not any(key.startswith(self.marker) for key in keys):
            return {}
        mine = [key for key in keys if key.startswith(self.prefix)]
        names = {key: rename(key.removeprefix(self.prefix), self.names) for key in mine}
        return {key: name for key, name in names.items() if name is not None}


# If two fit equally well, the earlier one wins. Projects that use the same names share a line.
LAYOUTS = (
    Layout("MoCo v1 or v2, its query encoder", "module.encoder_q."),
    Layout("MoCo v1 or v2, its query encoder", "encoder_q."),
    Layout("MoCo v3, its base encoder", "module.base_encoder."),
    Layout("DenseCL, its query encoder", "encoder_q.0.", marker="queue2"),
    Layout("OpenSelfSup or DenseCL, its query encoder", "encoder_q.0."),
    Layout("OpenSelfSup or DenseCL, its query encoder", "module.encoder_q.0."),
    Layout("PixPro, its online encoder", "module.encoder.", marker="module.encoder_k."),
    Layout("SimSiam or PixPro, its encoder", "module.encoder."),
    Layout("DINO", "module.backbone.", marker="module.head."),
    Layout("Barlow Twins, VICReg or DINO", "module.backbone."),
    Layout("SwAV or DeepCluster v2", "module.", marker="module.prototypes."),
    Layout("SwAV or DeepCluster v2", "", marker="prototypes."),
    Layout("torchvision's names in DataParallel", "module."),
    Layout("a run of this project, its online encoder", "online.backbone."),
    Layout("a run of this project, its classifier", "classifier.backbone."),
    Layout("a detector of this project", "backbone.", marker="neck.lateral."),
    Layout("mmselfsup, mmpretrain, DenseCL or DINO", "backbone."),
    Layout("mmpretrain's MobileNetV2", "backbone.", MM_MOBILENET_V2),
    Layout("mmpretrain's MobileNetV2, extracted", "", MM_MOBILENET_V2),
    Layout("timm's MobileNetV2", "", TIMM_MOBILENET_V2),
    Layout("torchvision's names", ""),
)


def recognise(keys: Iterable[str], ours: Iterable[str]) -> tuple[Layout, dict[str, str]] | None:
    """Find the layout that yields most of our names, and our name for each key that has one.

    Args:
        keys: names in the file.
        ours: names of the backbone's weights.

    Returns:
        None if no layout yields any of our names.
    """
    keys, ours = list(keys), set(ours)
    best: tuple[Layout, dict[str, str]] | None = None
    most = 0
    for layout in LAYOUTS:
        names = layout.renamed(keys)
        found = len(ours.intersection(names.values()))
        if found > most:
            best, most = (layout, names), found
    return best
