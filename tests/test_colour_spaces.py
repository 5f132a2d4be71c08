"""Colour spaces against colorsys and known colours."""

from __future__ import annotations

import colorsys

import torch

from data.selective_search.colour_spaces import rgb, rgb_to_hsv, rgb_to_lab


def test_hsv_equals_colorsys() -> None:
    image = torch.randint(256, (2, 3, 9, 11), generator=torch.Generator().manual_seed(0)).float()
    for i, colour in enumerate([(0, 0, 0), (255, 255, 255), (7, 7, 7), (255, 0, 0), (0, 255, 0)]):
        image[0, :, 0, i] = torch.tensor(colour).float()
    pixels = image.permute(0, 2, 3, 1).reshape(-1, 3) / 255
    expected = torch.tensor([colorsys.rgb_to_hsv(*pixel) for pixel in pixels.tolist()])
    found = rgb_to_hsv(image).permute(0, 2, 3, 1).reshape(-1, 3) / 255
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_lab_of_known_colours() -> None:
    colours = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255], [119, 119, 119]]
    image = torch.tensor(colours).float().T[None, :, None]  # (1, 3, 1, 5)
    found = rgb_to_lab(image)[0, :, 0].T
    lab = torch.stack([found[:, 0] / 2.55, found[:, 1] - 128, found[:, 2] - 128], dim=1)
    known = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    torch.testing.assert_close(lab, torch.tensor(known), atol=0.4, rtol=0)  # a table's steps


def test_rgb_is_left_alone() -> None:
    image = torch.rand(1, 3, 4, 5)
    assert rgb(image) is image
