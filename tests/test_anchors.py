import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from models.anchors import grid_points


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


def test_equals_centres_of_torchvisions_anchors():
    sizes, strides = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)], [8, 16, 32, 64, 128]
    features = [torch.zeros(1, 1, h, w) for h, w in sizes]
    images = ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)])
    generator = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    anchors = generator(images, features)[0]
    points, point_strides = grid_points(sizes, strides, 0.0)
    # The last map is 2 cells wide for 192 px, which torchvision takes for a stride of 96.
    same = slice(0, len(points) - 2)
    assert torch.equal(points[same], (anchors[same, :2] + anchors[same, 2:]) / 2)
    assert torch.equal(point_strides, anchors[:, 2] - anchors[:, 0])
    assert points[-1].tolist() == [128, 0]
