"""Hugging Face's DETR on a ResNet-18, with the weights of ours."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from models.detr import DETR
from models.renaming import rename

PARAMETERS = "(weight|bias)"
STATE = "(weight|bias|running_mean|running_var|num_batches_tracked)"
BACKBONE, LAYER = r"model\.backbone\.model", r"model\.((?:en|de)coder)\.layers\.(\d+)"
KINDS = {"convolution": "conv", "normalization": "bn"}
SHORTCUT = {"convolution": 0, "normalization": 1}
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "output"}
NORMS = {
    ("encoder", "self_attn"): 1,
    ("encoder", "final"): 2,
    ("decoder", "self_attn"): 1,
    ("decoder", "encoder_attn"): 2,
    ("decoder", "final"): 3,
}
NAMES = (
    (
        rf"{BACKBONE}\.embedder\.embedder\.(convolution|normalization)\.{STATE}",
        lambda m: f"backbone.{KINDS[m[1]]}1.{m[2]}",
    ),
    (
        rf"{BACKBONE}\.encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)"
        rf"\.(convolution|normalization)\.{STATE}",
        lambda m: f"backbone.layer{int(m[1]) + 1}.{m[2]}.{KINDS[m[4]]}{int(m[3]) + 1}.{m[5]}",
    ),
    (
        rf"{BACKBONE}\.encoder\.stages\.(\d)\.layers\.0\.shortcut"
        rf"\.(convolution|normalization)\.{STATE}",
        lambda m: f"backbone.layer{int(m[1]) + 1}.0.downsample.{SHORTCUT[m[2]]}.{m[3]}",
    ),
    (rf"model\.input_projection\.{PARAMETERS}", r"input_projection.\1"),
    (r"model\.query_position_embeddings\.weight", "query_embedding.weight"),
    (
        rf"{LAYER}\.self_attn\.([qkvo])_proj\.{PARAMETERS}",
        lambda m: f"transformer.{m[1]}.{m[2]}.self_attention.{PROJECTIONS[m[3]]}.{m[4]}",
    ),
    (
        rf"{LAYER}\.encoder_attn\.([qkvo])_proj\.{PARAMETERS}",
        lambda m: f"transformer.{m[1]}.{m[2]}.cross_attention.{PROJECTIONS[m[3]]}.{m[4]}",
    ),
    (
        rf"{LAYER}\.(self_attn|encoder_attn|final)_layer_norm\.{PARAMETERS}",
        lambda m: f"transformer.{m[1]}.{m[2]}.norm{NORMS[m[1], m[3]]}.{m[4]}",
    ),
    (rf"{LAYER}\.mlp\.fc1\.{PARAMETERS}", r"transformer.\1.\2.feedforward.0.\3"),
    (rf"{LAYER}\.mlp\.fc2\.{PARAMETERS}", r"transformer.\1.\2.feedforward.3.\3"),
    (rf"model\.decoder\.layernorm\.{PARAMETERS}", r"transformer.decoder_norm.\1"),
    (rf"class_labels_classifier\.{PARAMETERS}", r"classifier.\1"),
    (
        rf"bbox_predictor\.layers\.(\d)\.{PARAMETERS}",
        lambda m: f"box_regression.{2 * int(m[1])}.{m[2]}",
    ),
)


def our_name(name: str) -> str:
    """Our name for a weight of theirs."""
    ours = rename(name, NAMES)
    assert ours is not None, name
    return ours


def hugging_face_detr(ours: DETR) -> DetrForObjectDetection:
    """Their model, in eval mode, with the weights of ours; computes in the default dtype."""
    c = ours.config
    backbone = ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        out_features=["stage4"],
    )
    config = DetrConfig(
        backbone_config=backbone,
        d_model=c.width,
        encoder_layers=c.encoder_layers,
        decoder_layers=c.decoder_layers,
        encoder_attention_heads=c.heads,
        decoder_attention_heads=c.heads,
        encoder_ffn_dim=c.feedforward,
        decoder_ffn_dim=c.feedforward,
        num_queries=c.queries,
        num_labels=ours.num_classes,
        attn_implementation="eager",
    )
    theirs = DetrForObjectDetection(config).to(torch.get_default_dtype()).eval()
    state = ours.state_dict()
    names = {name: our_name(name) for name in theirs.state_dict()}
    taken = set(names.values())
    assert {name for name in state if "num_batches" not in name} == taken, "some have no place"
    theirs.load_state_dict({name: state[our] for name, our in names.items()})
    # They mean to freeze the first stages of the backbone, and freeze all of it.
    return theirs.requires_grad_(True)


def objects_of_layers(theirs: DetrForObjectDetection, images: Tensor, mask: Tensor) -> Tensor:
    """(L, N, Q, C): what the outputs would read after each decoder layer. With `auxiliary_loss`,
    theirs would feed each layer's norm to the next layer, which DETR does not."""
    layers, hooks = [], []
    for layer in theirs.model.decoder.layers:
        hooks.append(layer.register_forward_hook(lambda *call: layers.append(call[2])))
    theirs(images, mask)
    for hook in hooks:
        hook.remove()
    return theirs.model.decoder.layernorm(torch.stack(layers))
