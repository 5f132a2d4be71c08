"""The weights that DETR's authors published, under our names.

Their `detr-r50` and `detr-r101` fit `DETRConfig()` with K = 91: a label is COCO's category id, of
which 11 (0 among them) are unused. Images are normalised as here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.renaming import rename

LINEAR = "(weight|bias)"
NAMES = (
    (r"backbone\.0\.body\.(.+)", r"backbone.\1"),
    (rf"input_proj\.{LINEAR}", r"input_projection.\1"),
    (r"query_embed\.weight", r"query_embedding.weight"),
    (rf"transformer\.(en|de)coder\.norm\.{LINEAR}", r"transformer.\1coder_norm.\2"),
    (
        rf"transformer\.((?:en|de)coder)\.layers\.(\d+)\.(norm[123])\.{LINEAR}",
        r"transformer.\1.\2.\3.\4",
    ),
    (
        rf"transformer\.((?:en|de)coder)\.layers\.(\d+)\.linear1\.{LINEAR}",
        r"transformer.\1.\2.feedforward.0.\3",
    ),
    (
        rf"transformer\.((?:en|de)coder)\.layers\.(\d+)\.linear2\.{LINEAR}",
        r"transformer.\1.\2.feedforward.3.\3",
    ),
    (
        rf"transformer\.((?:en|de)coder)\.layers\.(\d+)\.self_attn\.out_proj\.{LINEAR}",
        r"transformer.\1.\2.self_attention.output.\3",
    ),
    (
        rf"transformer\.decoder\.layers\.(\d+)\.multihead_attn\.out_proj\.{LINEAR}",
        r"transformer.decoder.\1.cross_attention.output.\2",
    ),
    (rf"class_embed\.{LINEAR}", r"classifier.\1"),
    (rf"bbox_embed\.layers\.0\.{LINEAR}", r"box_regression.0.\1"),
    (rf"bbox_embed\.layers\.1\.{LINEAR}", r"box_regression.2.\1"),
    (rf"bbox_embed\.layers\.2\.{LINEAR}", r"box_regression.4.\1"),
)
# Query, key and value projection in one matrix; "{}" is the place of their names here.
STACKED_NAMES = (
    (
        rf"transformer\.((?:en|de)coder)\.layers\.(\d+)\.self_attn\.in_proj_{LINEAR}",
        r"transformer.\1.\2.self_attention.{}.\3",
    ),
    (
        rf"transformer\.decoder\.layers\.(\d+)\.multihead_attn\.in_proj_{LINEAR}",
        r"transformer.decoder.\1.cross_attention.{}.\2",
    ),
)


def detr_from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of our `DETR` from that of theirs, which their files hold as "model".

    `model.load_state_dict(result)` accepts it. Tensors are not copied.

    Raises:
        ValueError: naming the first key that has no counterpart.
    """
    result = {}
    for key, tensor in state_dict.items():
        stacked = rename(key, STACKED_NAMES)
        if stacked is not None:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            result |= {stacked.format(name): part for name, part in parts}
            continue
        ours = rename(key, NAMES)
        if ours is None:
            raise ValueError(
                f"{key} has no counterpart in our DETR; give the state_dict of the authors' DETR, "
                'which is "model" in their files'
            )
        result[ours] = tensor
    return result
