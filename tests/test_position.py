import math

import torch

from models.position import cells_inside, encode_cells, sine_encoding


def test_cells_that_begin_in_the_image_are_inside():
    inside = cells_inside(torch.tensor([1, 32, 33, 96]), 3, stride=32)
    expected = [[True, False, False], [True, False, False], [True, True, False], [True] * 3]
    assert inside.tolist() == expected


def test_encoding_is_that_of_a_slow_loop():
    channels, inside = 6, torch.tensor([[True] * 5, [True, True, False, False, False]])
    encoded = sine_encoding(inside, channels)
    assert encoded.shape == (2, 5, channels)
    for n, count in ((0, 5), (1, 2)):
        for cell in range(count):
            position = (cell + 1) / (count + 1e-6) * 2 * math.pi
            for channel in range(channels):
                angle = position / 10_000 ** (2 * (channel // 2) / channels)
                value = math.cos(angle) if channel % 2 else math.sin(angle)
                assert abs(encoded[n, cell, channel].item() - value) < 1e-5


def test_rows_come_first_and_maps_are_flattened_row_by_row():
    heights, widths = torch.tensor([64, 33]), torch.tensor([96, 20])
    positions, inside = encode_cells(heights, widths, (2, 3), stride=32, channels=8)
    assert positions.shape == (2, 6, 8)
    assert positions.dtype == torch.float32
    assert inside.tolist() == [[True] * 6, [True, False, False, True, False, False]]
    grid = positions.unflatten(1, (2, 3))
    assert torch.equal(grid[0, 1, :, :4], grid[0, 1, :1, :4].expand(3, 4))  # of one row
    assert torch.equal(grid[0, :, 2, 4:], grid[0, :1, 2, 4:].expand(2, 4))  # of one column
    assert not torch.equal(grid[0, 0, 0, :4], grid[0, 1, 0, :4])


def test_padding_does_not_change_positions():
    alone, _ = encode_cells(torch.tensor([64]), torch.tensor([64]), (2, 2), 32, 8)
    sides = torch.tensor([64, 128]), torch.tensor([64, 160])
    padded, inside = encode_cells(*sides, (4, 5), 32, 8)
    assert torch.equal(padded[0][inside[0]], alone[0])
