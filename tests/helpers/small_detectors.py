"""One small detector of each kind, for tests of everything that must fit all of them."""

from __future__ import annotations

from models import ModelConfig

EVERYTHING = 10_000  # so many samples that nothing is left to chance
OPTIONS = {
    "fcos": {"channels": 32, "num_convs": 1},
    "retinanet": {"channels": 32, "num_convs": 1},
    "faster_rcnn": {
        "channels": 32,
        "box_features": 64,
        "roi_size": 5,
        "rpn_samples": EVERYTHING,
        "roi_samples": EVERYTHING,
    },
}
OPTIONS["detr"] = {
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feedforward": 64,
    "dropout": 0.0,
    "queries": 20,
}
OPTIONS["mask_rcnn"] = {**OPTIONS["faster_rcnn"], "mask_convs": 1, "mask_roi_size": 7}
BOX_LOSSES = {
    "fcos": {"loss_box", "loss_centerness"},
    "retinanet": {"loss_box"},
    "faster_rcnn": {"loss_rpn_objectness", "loss_rpn_box", "loss_box"},
    "detr": {"loss_box", "loss_giou"},
}
BOX_LOSSES["mask_rcnn"] = {*BOX_LOSSES["faster_rcnn"], "loss_mask"}


def model_config(detector="fcos", **changes):
    """A detector on a ResNet-18; `options` replace those here."""
    changes = {"backbone": "resnet18", "options": OPTIONS[detector], **changes}
    return ModelConfig(detector=detector, **changes)
