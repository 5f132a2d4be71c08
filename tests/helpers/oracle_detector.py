"""A detector that knows every image of a dataset, to test what is done with detections."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

from data.normalise import normalise
from data.views import DetectionDataset, SampleKey, pad_images


def blobs(count: int, generator: torch.Generator) -> torch.Tensor:
    """Masks (count, 28, 28) of detections, in 0..1, without detail: high in the middle."""
    noise = torch.rand(count, 1, 5, 5, generator=generator)
    noise[:, :, 1:4, 1:4] += 1
    return interpolate(noise / 2, (28, 28), mode="bilinear")[:, 0]


class OracleDetector(nn.Module):
    """Knows an image by its pixels; finds its boxes, each side moved by up to `noise` pixels, maybe
    with masks."""

    def __init__(self, dataset: DetectionDataset, noise: float = 0.0, masks: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        samples = [dataset[SampleKey(index, "")] for index in range(len(dataset))]
        self.known = normalise(*pad_images([sample["image"] for sample in samples]))
        self.found = []
        for sample in samples:
            shift = torch.rand(sample["boxes"].shape, generator=generator) * 2 - 1
            scores = torch.rand(len(sample["labels"]), generator=generator)
            boxes = sample["boxes"] + noise * shift
            self.found.append({"boxes": boxes, "scores": scores, "labels": sample["labels"]})
            if masks:
                self.found[-1]["masks"] = blobs(len(boxes), generator)

    def forward(self, images, image_sizes):
        distances = [(image - self.known).abs().flatten(1).sum(1) for image in images]
        return [self.found[int(distance.argmin())] for distance in distances]
