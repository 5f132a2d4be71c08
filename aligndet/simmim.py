"""SimMIM (Xie et al., CVPR 2022): hide patches of an image, and have the backbone predict their
pixels, so that it must know what belongs to what.

A Swin sees a learned token where a patch is hidden, in the place of its embedding. Other backbones,
which have no embedding, see a learned colour.

Legend: N images, S pixels of their sides, P pixels of a hidden patch's, C channels of the last map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aligndet import dist
from losses.masked_l1 import masked_l1_loss
from models.backbone_base import StagedBackbone
from models.checks import require_range
from models.swin import PATCH, Block, SwinTransformer

STRIDE = 32  # pixels per cell of the last map


@dataclass(frozen=True)
class SimMIMConfig:
    """The `image.simmim` section."""

    patch_size: int = 32  # P, pixels; image.crop_size is a multiple
    ratio: float = 0.6  # of the patches that are hidden

    def __post_init__(self) -> None:
        require_range("image.simmim.patch_size", self.patch_size, least=PATCH)
        require_range("image.simmim.ratio", self.ratio, above=0, most=1)

    def check_crop(self, size: int) -> None:
        """Check that patches fill a crop, and cells of a Swin a patch.

        Raises:
            ValueError: they do not; names the config keys to change.
        """
        if self.patch_size % PATCH:
            raise ValueError(
                f"image.simmim.patch_size is {self.patch_size}; give a multiple of {PATCH}"
            )
        for unit, key in ((STRIDE, "the cells of the last map"), (self.patch_size, "the patches")):
            if size % unit:
                raise ValueError(
                    f"image.crop_size is {size}, which {key}, of {unit} pixels, do not fill; give "
                    f"a multiple, such as {max(1, round(size / unit)) * unit}"
                )
        if size == self.patch_size:
            raise ValueError(
                f"image.crop_size is {size}, a single patch, which would be hidden; raise it or "
                "lower image.simmim.patch_size"
            )


class SimMIM(nn.Module):
    """The task of `train.fit`: predict the hidden pixels of images.

    Args:
        backbone: all of it is trained, in place, without stochastic depth.
    """

    def __init__(self, backbone: StagedBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.skip_maps(3)
        for module in backbone.modules():
            if isinstance(module, Block):
                module.drop = 0.0  # as in the authors' pre-training
        token = backbone.channels[0] if isinstance(backbone, SwinTransformer) else 3
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(token), std=0.02))
        # A linear layer per cell, to the pixels that it stands for (section 3.3).
        self.decoder = nn.Sequential(
            nn.Conv2d(backbone.channels[-1], 3 * STRIDE**2, 1), nn.PixelShuffle(STRIDE)
        )

    def forward(
        self, batch: dict[str, Any], with_statistics: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step's loss.

        Args:
            batch: from `collate_image_views`, with one view and what is hidden of it.
            with_statistics: whether this step logs statistics.

        Returns:
            `loss_pixels`; and the loss of a prediction that knows nothing but the mean colour of
            what is seen of each image (`mean_colour`).
        """
        (images,), patches = batch["views"], batch["hidden"]
        prediction = self.reconstruct(images, patches)
        hidden = enlarge(patches, images.shape[-1])  # (N, S, S)
        losses = {"loss_pixels": masked_l1_loss(prediction, images, hidden)}
        if not with_statistics:
            return losses, {}
        colours = mean_colours(images, ~hidden).expand_as(images)
        return losses, {"mean_colour": masked_l1_loss(colours, images, hidden)}

    def reconstruct(self, images: Tensor, patches: Tensor) -> Tensor:
        """Images (N, 3, S, S), of which patches (N, S/P, S/P) bool are hidden, to what the backbone
        takes them for, (N, 3, S, S); also where they can be seen, though nothing trains that."""
        if isinstance(self.backbone, SwinTransformer):
            cells = enlarge(patches, images.shape[-1] // PATCH)
            return self.decoder(self.backbone(images, cells, self.token)[-1])
        hidden = enlarge(patches, images.shape[-1])[:, None]
        images = torch.where(hidden, self.token[:, None, None], images)
        return self.decoder(self.backbone(images)[-1])

    def update_target(self, step: int, total_steps: int) -> dict[str, float]:
        """Average BatchNorm statistics over ranks; there is no target to move."""
        dist.average_statistics(self)
        return {}

    @property
    def linear(self) -> None:
        """There is no classification layer."""
        return None

    def notes(self, num_images: int) -> list[str]:
        """What to know before training on this many images: nothing."""
        return []

    def weights(self) -> dict[str, Tensor]:
        """The backbone under torchvision's names."""
        return self.backbone.state_dict()


def enlarge(patches: Tensor, side: int) -> Tensor:
    """A grid (N, G, G) to one of `side` x `side` equal squares, side a multiple of G."""
    times = side // patches.shape[-1]
    return patches.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def mean_colours(images: Tensor, seen: Tensor) -> Tensor:
    """(N, 3, 1, 1): the mean of each image (N, 3, S, S) over `seen` (N, S, S), 0 if that is
    nothing."""
    seen = seen[:, None]
    return (images * seen).sum(dim=(2, 3), keepdim=True) / seen.sum((2, 3), True).clamp(min=1)
