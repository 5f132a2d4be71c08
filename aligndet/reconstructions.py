"""What a backbone that learns by SimMIM makes of the hidden parts of some photographs.

Legend: N images, S pixels of their sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aligndet import dist
from aligndet.amp import autocast
from aligndet.simmim import SimMIM, enlarge
from aligndet.visual import sheet
from data.atomic_files import open_atomic
from data.image_views import ImageViews, collate_image_views
from data.images import BadImage
from data.normalise import MEAN, STD, normalise_batch
from data.views import SampleKey
from losses.masked_l1 import masked_l1_loss

IMAGES = 8
TITLES = ("image", "seen", "filled in")  # short: pictures may be small
GREY = 128  # of hidden patches


@dataclass(frozen=True)
class Reconstructions:
    """The same views, with the same patches hidden, each time.

    Args:
        task: whose backbone is looked at.
        dataset: of the run; images from all over it are taken.
        folder: for the pictures, one per call.
        device: of this process.
        amp: as in a config.
    """

    task: SimMIM
    dataset: ImageViews
    folder: Path
    device: torch.device
    amp: str

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Write a picture, `step_00001000.jpg` after 1,000 steps; returns the loss of these views,
        which, unlike that of a step, is of the same images each time."""
        samples = self.samples()
        if not samples:
            return {}
        batch = normalise_batch(collate_image_views(samples))
        (images,), patches = batch["views"], batch["hidden"]
        was_training = self.task.training
        self.task.eval()
        with autocast(self.device, self.amp):
            prediction = self.task.reconstruct(images.to(self.device), patches.to(self.device))
        self.task.train(was_training)
        prediction = prediction.float().cpu()
        hidden = enlarge(patches, images.shape[-1])
        if dist.is_main():
            picture = compare(images, prediction, hidden)
            with open_atomic(self.folder / f"step_{step:08}.jpg", binary=True) as file:
                picture.save(file, "JPEG", quality=90)
        return {"pixels_of_pictures": masked_l1_loss(prediction, images, hidden).item()}

    def samples(self) -> list[dict]:
        """Samples of images that are evenly spread over the dataset; bad images are left out."""
        count = min(IMAGES, len(self.dataset))
        found = []
        for number in range(count):
            index = number * len(self.dataset) // count
            try:
                found.append(self.dataset[SampleKey(index, f"reconstruction {index}")])
            except BadImage:  # training says so
                continue
        return found


def compare(images: Tensor, prediction: Tensor, hidden: Tensor) -> Image.Image:
    """A row per image: as it is, what is seen of it, and the prediction where it is hidden.

    Args:
        images: (N, 3, S, S), normalised.
        prediction: (N, 3, S, S), likewise.
        hidden: (N, S, S) bool.
    """
    truth, guess = as_bytes(images), as_bytes(prediction)
    hidden = hidden[:, None]
    columns = (truth, truth.masked_fill(hidden, GREY), torch.where(hidden, guess, truth))
    rows = [
        [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
        for pictures in zip(*columns, strict=True)
    ]
    return sheet(rows, TITLES)


def as_bytes(images: Tensor) -> Tensor:
    """The inverse of `normalise`: (N, 3, S, S) uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
