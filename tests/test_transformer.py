"""The layers against PyTorch's own, which have no positions inside."""

import pytest
import torch
from torch import nn

from models.detr_weights import detr_from_authors
from models.transformer import DecoderLayer, EncoderLayer, Transformer

WIDTH, HEADS, FEEDFORWARD = 24, 4, 40
ROUNDING = {"rtol": 0, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("double_precision")


def pair(kind, pre_norm):
    """PyTorch's layer and ours with its weights, renamed as those of DETR's authors."""
    torch.manual_seed(0)
    theirs = {"encoder": nn.TransformerEncoderLayer, "decoder": nn.TransformerDecoderLayer}[kind](
        WIDTH, HEADS, FEEDFORWARD, dropout=0.0, batch_first=True, norm_first=pre_norm
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = {"encoder": EncoderLayer, "decoder": DecoderLayer}[kind](
        WIDTH, HEADS, FEEDFORWARD, 0.0, pre_norm
    )
    prefix = f"transformer.{kind}.layers.0."
    state = detr_from_authors({prefix + k: v for k, v in theirs.state_dict().items()})
    ours.load_state_dict({k.removeprefix(f"transformer.{kind}.0."): v for k, v in state.items()})
    return theirs, ours


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_is_pytorchs(pre_norm):
    theirs, ours = pair("encoder", pre_norm)
    cells = torch.randn(2, 7, WIDTH)
    inside = torch.ones(2, 7, dtype=torch.bool)
    inside[1, 3:] = False
    found = ours(cells, torch.zeros_like(cells), inside)
    expected = theirs(cells, src_key_padding_mask=~inside)
    torch.testing.assert_close(found[inside], expected[inside], **ROUNDING)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_is_pytorchs(pre_norm):
    theirs, ours = pair("decoder", pre_norm)
    objects, memory = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)
    inside = torch.ones(2, 7, dtype=torch.bool)
    inside[1, 3:] = False
    found = ours(objects, torch.zeros_like(objects), memory, torch.zeros_like(memory), inside)
    expected = theirs(objects, memory, memory_key_padding_mask=~inside)
    torch.testing.assert_close(found, expected, **ROUNDING)


def test_positions_are_added_to_queries_and_keys_only():
    _, layer = pair("encoder", False)
    cells, positions = torch.randn(1, 4, WIDTH), torch.randn(1, 4, WIDTH)
    seen = {}
    layer.self_attention.query.register_forward_hook(lambda *a: seen.update(query=a[1][0]))
    layer.self_attention.key.register_forward_hook(lambda *a: seen.update(key=a[1][0]))
    layer.self_attention.value.register_forward_hook(lambda *a: seen.update(value=a[1][0]))
    layer(cells, positions, torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(seen["query"], cells + positions)
    assert torch.equal(seen["key"], cells + positions)
    assert torch.equal(seen["value"], cells)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_layer_is_returned_and_normalised(pre_norm):
    torch.manual_seed(0)
    model = Transformer(WIDTH, HEADS, 2, 3, FEEDFORWARD, 0.0, pre_norm)
    inside = torch.ones(2, 6, dtype=torch.bool)
    cells, positions = torch.randn(2, 6, WIDTH), torch.randn(2, 6, WIDTH)
    memory = model.encode(cells, positions, inside)
    objects = model.decode(memory, positions, inside, torch.randn(5, WIDTH))
    assert objects.shape == (3, 2, 5, WIDTH)
    torch.testing.assert_close(objects.mean(dim=3), torch.zeros(3, 2, 5), **ROUNDING)
    assert isinstance(model.encoder_norm, nn.LayerNorm) == pre_norm


def test_projections_start_as_in_pytorchs_attention():
    torch.manual_seed(0)
    ours = EncoderLayer(64, 4, 8, 0.0, False).self_attention
    theirs = nn.MultiheadAttention(64, 4)
    bound = theirs.in_proj_weight.abs().max()
    for projection in (ours.query, ours.key, ours.value):
        torch.testing.assert_close(projection.weight.abs().max(), bound, rtol=0.01, atol=0)
        assert not projection.bias.any()


def test_dropout_is_off_in_eval_mode():
    torch.manual_seed(0)
    layer = EncoderLayer(WIDTH, HEADS, FEEDFORWARD, 0.5, False)
    cells, inside = torch.randn(1, 4, WIDTH), torch.ones(1, 4, dtype=torch.bool)
    assert not torch.equal(layer(cells, cells, inside), layer(cells, cells, inside))
    layer.eval()
    assert torch.equal(layer(cells, cells, inside), layer(cells, cells, inside))
