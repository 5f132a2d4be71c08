"""Hugging Face's Swin for masked image modelling, with the weights of our task."""

from __future__ import annotations

import re

from torch import Tensor
from transformers import SwinConfig, SwinForMaskedImageModeling

from aligndet.simmim import SimMIM
from tests.helpers.narrow_backbones import NARROW

STARTS = {
    "decoder.0.": "decoder.0.",
    "backbone.features.0.0.": "swin.embeddings.patch_embeddings.projection.",
    "backbone.features.0.2.": "swin.embeddings.norm.",
    "backbone.norm.": "swin.layernorm.",
}
PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "attn.proj": "attention.o_proj",
    "attn.relative": "attention.relative_position_bias.relative",
}


def hugging_face_swin(task: SimMIM, size: int) -> SwinForMaskedImageModeling:
    """Their model, in eval mode, for images of `size` pixels."""
    config = SwinConfig(
        image_size=size,
        embed_dim=NARROW.width,
        depths=list(NARROW.depths),
        num_heads=list(NARROW.heads),
        window_size=NARROW.window,
        encoder_stride=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    model = SwinForMaskedImageModeling(config)
    theirs: dict[str, Tensor] = {}
    for name, value in task.state_dict().items():
        theirs |= renamed(name, value)
    result = model.load_state_dict(theirs, strict=False)
    assert not result.unexpected_keys, result.unexpected_keys
    missing = {name for name in result.missing_keys if "relative_position_index" not in name}
    assert not missing, missing
    return model.eval()


def renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor of ours under their name, or names: they have a layer each for query, key, value."""
    if "relative_position_index" in name or re.match(r"backbone\.norm_c\d", name):
        return {}
    if name == "token":
        return {"swin.embeddings.mask_token": value[None, None]}
    for ours, theirs in STARTS.items():
        if name.startswith(ours):
            return {theirs + name.removeprefix(ours): value}
    if merging := re.fullmatch(r"backbone\.features\.([246])\.((?:reduction|norm)\..*)", name):
        layer = int(merging[1]) // 2 - 1
        return {f"swin.encoder.layers.{layer}.downsample.{merging[2]}": value}
    block = re.fullmatch(r"backbone\.features\.([1357])\.(\d+)\.(.*)", name)
    start = f"swin.encoder.layers.{int(block[1]) // 2}.blocks.{block[2]}."
    if qkv := re.fullmatch(r"attn\.qkv\.(weight|bias)", block[3]):
        kinds = zip("qkv", value.chunk(3), strict=True)
        return {f"{start}attention.{kind}_proj.{qkv[1]}": part for kind, part in kinds}
    part = next(part for part in PARTS if block[3].startswith(part))
    return {start + PARTS[part] + block[3].removeprefix(part): value}
