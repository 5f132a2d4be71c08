"""The authors' error, as the study reproduces it."""

from __future__ import annotations

import torch

from aligndet.adapters import RetinaNetAdapter
from aligndet.projectors import AnchorProjector
from experiments.pretrain_mislabelled import (
    MislabelledAdapter,
    MislabelledProjector,
    level_by_level,
)
from models import build_detector
from tests.helpers.small_detectors import model_config


def test_order_of_two_images_by_hand():
    """Levels of 3 and 1 anchors; image by image 0 1 2 | 3 and 4 5 6 | 7."""
    assert level_by_level(2, [3, 1]).tolist() == [0, 1, 2, 4, 5, 6, 3, 7]
    assert level_by_level(1, [3, 1]).tolist() == [0, 1, 2, 3]


def test_each_id_meets_the_embedding_at_its_place_of_the_other_list():
    torch.manual_seed(0)
    projector = MislabelledProjector(channels=4, anchors_per_cell=2, width=3)
    features = [torch.rand(2, 4, 2, 2), torch.rand(2, 4, 1, 1)]
    chosen = torch.tensor([0, 7, 8, 9, 10, 19])
    right = AnchorProjector(4, 2, 3)
    right.load_state_dict(projector.state_dict())
    # 8 anchors of an image on the first level, 2 on the second.
    listed = [*range(0, 8), *range(10, 18), 8, 9, 18, 19]
    expected = right(features, torch.tensor([listed[place] for place in chosen]))
    torch.testing.assert_close(projector(features, chosen), expected)
    assert not torch.allclose(projector(features, chosen), right(features, chosen))


def test_one_image_has_no_error():
    projector = MislabelledProjector(channels=4, anchors_per_cell=2, width=3)
    features = [torch.rand(1, 4, 2, 2), torch.rand(1, 4, 1, 1)]
    chosen = torch.arange(10)
    torch.testing.assert_close(
        projector(features, chosen), AnchorProjector.forward(projector, features, chosen)
    )


def test_the_adapter_has_it_and_its_weights_transfer_as_usual():
    detector = build_detector(model_config("retinanet"), 1)
    adapter = MislabelledAdapter(detector, width=8)
    assert isinstance(adapter.projector, MislabelledProjector)
    right = RetinaNetAdapter(build_detector(model_config("retinanet"), 1), width=8)
    shapes = {name: value.shape for name, value in adapter.weights().items()}
    assert shapes == {name: value.shape for name, value in right.weights().items()}
