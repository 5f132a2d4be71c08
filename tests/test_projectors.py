"""The projectors: shape, reach, and the embedding of an anchor against that of all anchors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from aligndet.projectors import AnchorProjector, conv_projector, fc_projector

CHANNELS, WIDTH, PER_CELL = 8, 5, 3
LEVELS = [(4, 6), (2, 3), (1, 1)]
CELLS = sum(h * w for h, w in LEVELS)


def maps(count=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, CHANNELS, *size, generator=generator) for size in LEVELS]


def test_conv_projector_looks_as_far_as_the_classifier():
    x = torch.zeros(1, CHANNELS, 7, 7, requires_grad=True)
    out = conv_projector(CHANNELS, WIDTH)(x + 1.0)
    assert out.shape == (1, WIDTH, 7, 7)
    out[0, :, 3, 3].sum().backward()
    rows, columns = x.grad[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 4)


def test_fc_projector_has_one_hidden_layer():
    torch.manual_seed(0)
    projector = fc_projector(CHANNELS, WIDTH)
    x = torch.randn(4, CHANNELS)
    first, second = projector[0], projector[2]
    hidden = (x @ first.weight.T).clamp(min=0)  # biases start at 0
    torch.testing.assert_close(projector(x), hidden @ second.weight.T)
    assert projector(x[:0]).shape == (0, WIDTH)


def test_chosen_anchors_have_the_embeddings_they_have_among_all():
    torch.manual_seed(0)
    projector = AnchorProjector(CHANNELS, PER_CELL, WIDTH)
    convolution, _, linear = projector.layers
    torch.nn.init.normal_(linear.bias)
    expected = []  # by loop: image, level, row, column, anchor
    for image in range(2):
        for x in maps():
            hidden = F.relu(convolution(x[image : image + 1]))[0]
            for row in range(hidden.shape[1]):
                for column in range(hidden.shape[2]):
                    expected += linear(hidden[:, row, column]).split(WIDTH)
    assert len(expected) == 2 * CELLS * PER_CELL
    order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(1))
    for chosen in (torch.arange(len(expected)), order[:20], order[:1], order[:0]):
        embeddings = projector(maps(), chosen)
        assert embeddings.shape == (len(chosen), WIDTH)
        for embedding, index in zip(embeddings, chosen.tolist(), strict=True):
            torch.testing.assert_close(embedding, expected[index])


def test_an_anchors_embedding_looks_as_far_as_the_classifier():
    x = torch.zeros(1, CHANNELS, 7, 7, requires_grad=True)
    middle = torch.tensor([(3 * 7 + 3) * PER_CELL + 1])
    AnchorProjector(CHANNELS, PER_CELL, WIDTH)([x + 1.0], middle).sum().backward()
    rows, columns = x.grad[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 4)


@pytest.mark.parametrize("count", [0, 3])
def test_every_parameter_gets_a_gradient_whatever_is_chosen(count):
    projector = AnchorProjector(CHANNELS, PER_CELL, WIDTH)
    projector(maps(), torch.arange(count)).sum().backward()
    for parameter in projector.parameters():
        assert parameter.grad is not None  # so that DDP can reduce it
        assert parameter.grad.any() == (count > 0)
