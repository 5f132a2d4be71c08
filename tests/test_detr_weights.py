"""The layout of the authors' weights; tests/test_transformer.py computes with it."""

import pytest
import torch
from torch import nn

from models import ModelConfig, build_detector
from models.detr_weights import detr_from_authors


def authors_names():
    """Names and shapes of the published detr-r50, built from PyTorch's layers, which it uses."""
    with torch.device("meta"):
        body = build_detector(ModelConfig(), 1).backbone
        encoder = nn.TransformerEncoderLayer(256, 8, 2048)
        decoder = nn.TransformerDecoderLayer(256, 8, 2048)
        parts = {
            "transformer.decoder.norm": nn.LayerNorm(256),
            "class_embed": nn.Linear(256, 92),
            "bbox_embed.layers.0": nn.Linear(256, 256),
            "bbox_embed.layers.1": nn.Linear(256, 256),
            "bbox_embed.layers.2": nn.Linear(256, 4),
            "query_embed": nn.Embedding(100, 256),
            "input_proj": nn.Conv2d(2048, 256, 1),
            "backbone.0.body": body,
        }
        parts |= {f"transformer.encoder.layers.{i}": encoder for i in range(6)}
        parts |= {f"transformer.decoder.layers.{i}": decoder for i in range(6)}
    return {
        f"{prefix}.{name}": value
        for prefix, part in parts.items()
        for name, value in part.state_dict().items()
        if not name.endswith("num_batches_tracked")  # their frozen BatchNorm does not count
    }


def test_every_published_weight_has_its_place():
    theirs = authors_names()
    assert "transformer.decoder.layers.5.multihead_attn.in_proj_weight" in theirs
    converted = detr_from_authors(theirs)
    with torch.device("meta"):
        ours = build_detector(ModelConfig(detector="detr"), 91)
    expected = {k: v.shape for k, v in ours.state_dict().items() if "num_batches" not in k}
    assert {k: v.shape for k, v in converted.items()} == expected
    ours.load_state_dict(converted, assign=True)


def test_query_key_and_value_are_in_pytorchs_order():
    name = "transformer.encoder.layers.3.self_attn.in_proj_bias"
    converted = detr_from_authors({name: torch.arange(6)})
    prefix = "transformer.encoder.3.self_attention."
    assert {k.removeprefix(prefix): v.tolist() for k, v in converted.items()} == {
        "query.bias": [0, 1],
        "key.bias": [2, 3],
        "value.bias": [4, 5],
    }


@pytest.mark.parametrize("name", ["mask_head.lay1.weight", "class_embed.0.weight", "model"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f'^{name} has no counterpart.*\'?"model" in') as error:
        detr_from_authors({name: torch.zeros(1)})
    assert "\n" not in str(error.value)
