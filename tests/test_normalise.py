"""Normalised batches: the values of every pixel, zero padding, what is left as it is."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional

from data.normalise import MEAN, STD, normalise, normalise_batch
from data.views import pad_images


def every_value():
    """(3, 16, 16) with each of the 256 values in each channel."""
    values = torch.arange(256, dtype=torch.uint8).view(16, 16)
    return torch.stack([values, values.flip(0), values.T])


def test_values_are_torchvisions():
    ours = normalise(every_value()[None])
    assert ours.dtype == torch.float32
    expected = functional.normalize(functional.convert_image_dtype(every_value()), MEAN, STD)
    torch.testing.assert_close(ours[0], expected)


def test_values_are_rounded_as_single_operations():
    """Dividing by 255, by a Python number as by a tensor, is exact on a CPU, so that runs of older
    versions can be repeated."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = (every_value().float() / 255.0 - mean) / std
    assert torch.equal(normalise(every_value()[None])[0], expected)


def test_padding_is_zero_and_pixels_are_not():
    """Black pixels in the image are no padding."""
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in ((5, 7), (4, 9), (5, 9))]
    batch, sizes = pad_images(images, divisor=8)
    result = normalise(batch, sizes)
    assert result.shape == (3, 3, 8, 16)
    for image, (height, width) in zip(result, sizes.tolist(), strict=True):
        black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]).view(3, 1, 1)
        torch.testing.assert_close(image[:, :height, :width], black.expand(3, height, width))
        assert image.count_nonzero() == 3 * height * width
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_order_in_memory_stays(memory_format):
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8).contiguous(memory_format=memory_format)
    assert normalise(images).is_contiguous(memory_format=memory_format)


def test_its_input_stays_as_it_is():
    images, sizes = every_value()[None], torch.tensor([[4, 4]])
    normalise(images, sizes)
    assert torch.equal(images, every_value()[None])
    floats = torch.randn(1, 3, 4, 4)
    assert normalise(floats, sizes[:1]) is floats  # normalised already


def test_two_views():
    images, sizes = pad_images([every_value(), every_value()[:, :8]])
    boxes = [torch.rand(2, 4), torch.rand(0, 4)]
    view = {"images": images, "image_sizes": sizes, "boxes": boxes, "names": ["a", "b"]}
    result = normalise_batch((view, {**view, "images": images.flip(0)}))
    assert type(result) is tuple
    assert torch.equal(result[0]["images"], normalise(images, sizes))
    assert torch.equal(result[1]["images"], normalise(images.flip(0), sizes))
    assert result[0]["boxes"] is boxes
    assert result[0]["names"] == ["a", "b"]
    assert view["images"].dtype == torch.uint8


def test_views_of_whole_images():
    views = [every_value()[None], every_value()[None].flip(2)]
    result = normalise_batch({"views": views, "labels": torch.tensor([3])})
    assert torch.equal(result["views"][1], normalise(views[1]))
    assert result["labels"].tolist() == [3]


def test_other_batches_stay_as_they_are():
    for batch in ({"n": 3}, None, torch.zeros(2), "x"):
        assert normalise_batch(batch) is batch
