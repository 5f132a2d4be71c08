import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from models.anchors import (
    ANCHOR_RATIOS,
    cell_anchors,
    flatten_predictions,
    grid_anchors,
    grid_points,
)


def test_by_hand():
    points, strides = grid_points([(2, 3), (1, 2)], [8, 16], 0.5)
    first = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    second = [[8, 8], [24, 8]]
    assert points.tolist() == first + second
    assert strides.tolist() == [8] * 6 + [16] * 2
    assert points.dtype == strides.dtype == torch.float32


def test_order_is_that_of_a_flattened_map():
    height, width, stride = 3, 5, 4
    points, _ = grid_points([(height, width)], [stride], 0.0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    maps = torch.stack((x, y))[None] * stride  # (1, 2, H, W)
    assert torch.equal(points, maps.flatten(2).transpose(1, 2)[0].float())


def test_points_equal_centres_of_torchvisions_anchors():
    sizes, strides = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)], [8, 16, 32, 64, 128]
    features = [torch.zeros(1, 1, h, w) for h, w in sizes]
    images = ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)])
    generator = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    anchors = generator(images, features)[0]
    points, point_strides = grid_points(sizes, strides, 0.0)
    # The last map is 2 cells wide for 192 px: torchvision takes this as a stride of 96.
    same = slice(0, len(points) - 2)
    assert torch.equal(points[same], (anchors[same, :2] + anchors[same, 2:]) / 2)
    assert torch.equal(point_strides, anchors[:, 2] - anchors[:, 0])
    assert points[-1].tolist() == [128, 0]


def test_cell_anchors_by_hand():
    # A ratio is height / width, and does not change the area.
    anchors = cell_anchors([8, 16], [1.0, 4.0])
    assert anchors.tolist() == [[-4, -4, 4, 4], [-8, -8, 8, 8], [-2, -8, 2, 8], [-4, -16, 4, 16]]


def test_whole_pixels():
    anchors = cell_anchors([40.3], ANCHOR_RATIOS)
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.full((3,), 40.3**2))
    torch.testing.assert_close(height / width, torch.tensor(ANCHOR_RATIOS))
    rounded = cell_anchors([40.3], ANCHOR_RATIOS, whole_pixels=True)
    assert rounded.tolist() == [[-28, -14, 28, 14], [-20, -20, 20, 20], [-14, -28, 14, 28]]


def test_grid_anchors_by_hand():
    cells = [torch.tensor([[-1.0, -2, 1, 2], [-3, -3, 3, 3]]), torch.tensor([[-8.0, -8, 8, 8]] * 2)]
    anchors = grid_anchors([(1, 2), (1, 1)], [4, 8], cells, 0.5)
    assert anchors.tolist() == [
        [1, 0, 3, 4],
        [-1, -1, 5, 5],
        [5, 0, 7, 4],
        [3, -1, 9, 5],
        [-4, -4, 12, 12],
        [-4, -4, 12, 12],
    ]


def test_anchors_equal_torchvisions():
    strides = [8, 16, 32, 64, 128]
    sizes = [tuple(int(4 * s * 2 ** (i / 3)) for i in range(3)) for s in strides]
    generator = AnchorGenerator(tuple(sizes), (ANCHOR_RATIOS,) * 5)
    shapes = [(256 // s, 384 // s) for s in strides]
    images = ImageList(torch.zeros(1, 3, 256, 384), [(256, 384)])
    expected = generator(images, [torch.zeros(1, 1, h, w) for h, w in shapes])[0]
    exact = [[4 * s * 2 ** (i / 3) for i in range(3)] for s in strides]
    cells = [cell_anchors(e, ANCHOR_RATIOS, whole_pixels=True) for e in exact]
    assert torch.equal(grid_anchors(shapes, strides, cells, 0.0), expected)


def test_predictions_are_flattened_in_the_order_of_the_anchors():
    # Each number in each map encodes its image, level, row, column, anchor and channel.
    shapes, per_cell, width = [(2, 3), (1, 2)], 4, 5
    maps, expected = [], [[], []]
    for level, (height, columns) in enumerate(shapes):
        x = torch.zeros(2, per_cell * width, height, columns)
        for n in range(2):
            for row in range(height):
                for column in range(columns):
                    for anchor in range(per_cell):
                        codes = [
                            float(f"{n}{level}{row}{column}{anchor}{channel}")
                            for channel in range(width)
                        ]
                        first = anchor * width
                        x[n, first : first + width, row, column] = torch.tensor(codes)
                        expected[n].append(codes)
        maps.append(x)
    flat = flatten_predictions(maps, per_cell)
    assert flat.shape == (2, 32, width)
    assert flat.tolist() == expected
