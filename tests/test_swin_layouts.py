"""Swin weights in the names of other projects give the features of their models."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn

from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from models.swin_layouts import from_unfolded, resized_table

TIMM = "swin_tiny_patch4_window7_224"


def timm_model():
    torch.manual_seed(0)
    model = timm.create_model(TIMM, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # else all norms are alike
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def microsoft(weights):
    """Their merging ends a stage, where timm's begins the next."""
    result = {}
    for key, value in weights.items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        result[".".join(parts)] = value
    index = torch.zeros(49, 49, dtype=torch.long)
    return {**result, "layers.0.blocks.0.attn.relative_position_index": index}


def mmdetection(weights):
    """With merged cells in the order of `nn.Unfold`, and the norms of all four maps."""
    result = {}
    for key, value in microsoft(weights).items():
        if ".downsample." in key:
            *others, width = value.shape
            cells = value.reshape(*others, 2, 2, width // 4)  # column, row, channel
            value = cells.transpose(-1, -3).reshape(value.shape)
        for old, new in (
            ("layers.", "stages."),
            (".attn.", ".attn.w_msa."),
            (".mlp.fc1", ".ffn.layers.0.0"),
            (".mlp.fc2", ".ffn.layers.1"),
            ("patch_embed.proj.", "patch_embed.projection."),
        ):
            key = key.replace(old, new)
        key = re.sub("^norm", "norm3", key)
        result[f"backbone.{key}"] = value
    for number, channels in enumerate((96, 192, 384)):
        result[f"backbone.norm{number}.weight"] = torch.full((channels,), 2.0)
        result[f"backbone.norm{number}.bias"] = torch.full((channels,), number + 1.0)
    return {"state_dict": result}


def simmim(weights):
    encoder = {f"encoder.{key}": value for key, value in microsoft(weights).items()}
    more = {"encoder.mask_token": torch.zeros(1, 1, 96), "decoder.0.weight": torch.zeros(2)}
    return {"model": {**encoder, **more}}


LAYOUTS = {
    "timm": (lambda weights: weights, "timm's Swin (no prefix)"),
    "microsoft": (lambda w: {"model": microsoft(w)}, "Microsoft's Swin or SimMIM (no prefix)"),
    "simmim": (simmim, "Microsoft's Swin or SimMIM (encoder.)"),
    "mm": (mmdetection, "mmdetection's or mmpretrain's Swin (backbone.)"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_those_of_timm(tmp_path, layout):
    model = timm_model()
    convert, words = LAYOUTS[layout]
    torch.save(convert(model.state_dict()), tmp_path / "weights.pth")
    backbone = build_backbone("swin_t", frozen_stages=0)
    report = load_backbone_weights(backbone, tmp_path / "weights.pth")
    assert report.layout == words
    norms = {n for n in backbone.state_dict() if n.startswith("norm_c")}
    assert {n for n in report.missing if "index" not in n} == (set() if layout == "mm" else norms)
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        expected = model.double().forward_features(images)  # (1, 7, 7, C), after the last norm
        found = backbone.double().eval()(images)[3].permute(0, 2, 3, 1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    if layout == "mm":
        assert backbone.norm_c3.bias.unique().tolist() == [2.0]
        assert backbone.norm_c2.weight.unique().tolist() == [2.0]


def test_merged_cells_of_unfold_by_hand():
    """One channel of four cells: theirs row by row, ours column by column; then two channels."""
    theirs = torch.tensor([1.0, 2, 3, 4])
    assert from_unfolded("features.2.norm.weight", theirs).tolist() == [1, 3, 2, 4]
    assert from_unfolded("features.1.0.norm1.weight", theirs) is theirs
    x = torch.randn(1, 2, 4, 6)
    weight = torch.randn(3, 8)
    unfolded = nn.Unfold(2, stride=2)(x).transpose(1, 2)  # (1, 6, 8)
    cells = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    merged = torch.cat(cells, 1).flatten(2).transpose(1, 2)
    ours = from_unfolded("features.4.reduction.weight", weight)
    assert torch.allclose(merged @ ours.T, unfolded @ weight.T, atol=1e-5)


def test_tables_of_other_windows_are_resized(tmp_path):
    """As timm does it; SimMIM pre-trains with windows of 6 x 6 cells."""
    table = torch.randn(121, 3)
    expected = timm.layers.resize_rel_pos_bias_table_simple(table, (7, 7), (169, 3))
    assert torch.allclose(resized_table(table, 169), expected, rtol=0, atol=1e-5)
    assert resized_table(table, 121) is table
    assert len(resized_table(table[:120], 169)) == 120  # no square: the check of shapes refuses it

    model = timm.create_model(TIMM, pretrained=False, window_size=6, img_size=192)
    torch.save(simmim(model.state_dict()), tmp_path / "weights.pth")
    backbone = build_backbone("swin_t")
    load_backbone_weights(backbone, tmp_path / "weights.pth")
    given = model.layers[0].blocks[0].attn.relative_position_bias_table
    loaded = backbone.features[1][0].attn.relative_position_bias_table
    assert torch.equal(loaded, resized_table(given.detach(), 169))
