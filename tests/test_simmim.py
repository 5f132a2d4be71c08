"""SimMIM: against Hugging Face's, against slow loops, and what it may and may not see."""

from __future__ import annotations

import pytest
import torch

from aligndet.image_domain import build_trained_backbone
from aligndet.simmim import SimMIM, enlarge
from models.swin import Block, SwinConfig, SwinTransformer
from tests.helpers.hugging_face_swin import hugging_face_swin
from tests.helpers.narrow_backbones import NARROW
from tests.test_masked_l1 import slow_loss

HIDDEN = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 0]]]).bool()  # patches of 32 px
BUILD = {
    "swin": lambda: SwinTransformer(NARROW),
    "resnet": lambda: build_trained_backbone("resnet18", 1),
}


def task_of(kind: str) -> SimMIM:
    torch.manual_seed(0)
    task = SimMIM(BUILD[kind]())
    torch.nn.init.normal_(task.token)
    return task.eval()


def batch_of(images: torch.Tensor, hidden: torch.Tensor = HIDDEN) -> dict:
    return {"views": [images], "hidden": hidden}


@pytest.mark.usefixtures("double_precision")
def test_a_swin_is_hugging_faces():
    """The reconstruction, the loss and the token's gradient."""
    torch.manual_seed(0)
    task = SimMIM(SwinTransformer(NARROW))
    for parameter in task.parameters():  # large enough to tell
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    theirs = hugging_face_swin(task, size=224)
    images, hidden = torch.randn(2, 3, 224, 224), torch.rand(2, 7, 7) < 0.6
    losses, _ = task(batch_of(images, hidden))
    expected = theirs(images, bool_masked_pos=enlarge(hidden, 56).flatten(1))
    torch.testing.assert_close(
        task.reconstruct(images, hidden), expected.reconstruction, rtol=1e-9, atol=1e-9
    )
    # They add 1e-5 to the number of hidden cells.
    assert losses["loss_pixels"].item() == pytest.approx(expected.loss.item(), rel=1e-7)
    losses["loss_pixels"].backward()
    expected.loss.backward()
    theirs_of_token = theirs.swin.embeddings.mask_token.grad[0, 0]
    torch.testing.assert_close(task.token.grad, theirs_of_token, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.usefixtures("double_precision")
@torch.no_grad()
def test_loss_and_mean_colour_against_slow_loops(kind):
    task = task_of(kind)
    images = torch.randn(2, 3, 64, 64)
    losses, statistics = task(batch_of(images))
    prediction = task.reconstruct(images, HIDDEN)
    hidden = torch.zeros(2, 64, 64, dtype=torch.bool)
    colours = torch.zeros(2, 3, 64, 64)
    for n in range(2):
        for y in range(64):
            for x in range(64):
                hidden[n, y, x] = HIDDEN[n, y // 32, x // 32]
        for c in range(3):
            colours[n, c] = images[n, c][~hidden[n]].mean()
    assert losses.keys() == {"loss_pixels"}
    assert losses["loss_pixels"].item() == pytest.approx(slow_loss(prediction, images, hidden))
    assert statistics["mean_colour"].item() == pytest.approx(slow_loss(colours, images, hidden))
    assert task(batch_of(images), with_statistics=False)[1] == {}


@pytest.mark.parametrize("kind", BUILD)
@torch.no_grad()
def test_what_is_hidden_cannot_be_seen_and_what_is_not_can(kind):
    task, images = task_of(kind), torch.randn(2, 3, 64, 64)
    before = task.reconstruct(images, HIDDEN)
    other_hidden, other_seen = images.clone(), images.clone()
    other_hidden[1, :, 32:, :32] += 1.0  # the patch that is hidden of the second image
    other_seen[1, :, 32:, 32:] += 1.0
    assert torch.equal(task.reconstruct(other_hidden, HIDDEN), before)
    changed = (task.reconstruct(other_seen, HIDDEN) != before).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True]


@torch.no_grad()
def test_a_cell_of_the_last_map_becomes_the_pixels_below_it():
    task = task_of("swin")
    task.backbone.forward = lambda *args: [last]
    last = torch.zeros(1, 192, 2, 2)
    last[0, :, 1, 0] = torch.randn(192)
    layer = task.decoder[0]
    pixels = task.reconstruct(torch.zeros(1, 3, 64, 64), HIDDEN[:1])[0]
    values = layer.weight[:, :, 0, 0] @ last[0, :, 1, 0] + layer.bias  # of the lower left cell
    for channel, y, x in ((0, 0, 0), (1, 5, 31), (2, 31, 7)):
        expected = values[channel * 1024 + y * 32 + x]
        assert pixels[channel, 32 + y, x].item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.equal(pixels[:, :32, :32], layer.bias.view(3, 32, 32))


def test_it_trains_all_but_the_norms_of_maps_that_nothing_reads():
    task = SimMIM(SwinTransformer(SwinConfig("narrow", 24, (2, 2, 2, 2), (1, 2, 4, 8), drop=0.5)))
    assert all(block.drop == 0 for block in task.modules() if isinstance(block, Block))
    losses, _ = task.train()(batch_of(torch.randn(2, 3, 64, 64)))
    losses["loss_pixels"].backward()
    without = {name for name, p in task.named_parameters() if p.grad is None}
    assert without == {
        f"backbone.norm_c{level}.{kind}" for level in (2, 3, 4) for kind in ("weight", "bias")
    }
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", BUILD)
def test_it_learns_to_continue_stripes(kind):
    """Each image has stripes of its own two colours, seen in half of it."""
    torch.manual_seed(0)
    task = task_of(kind).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    stripes = (torch.arange(64) // 8 % 2).float() * 2 - 1
    images = torch.randn(2, 3, 1, 1) + stripes.expand(2, 3, 64, 64)
    first = None
    for _ in range(40):
        losses, statistics = task(batch_of(images))
        optimizer.zero_grad()
        losses["loss_pixels"].backward()
        optimizer.step()
        first = first or losses["loss_pixels"].item()
    assert losses["loss_pixels"].item() < 0.5 * first
    # The mean colour is off by 1 everywhere.
    assert statistics["mean_colour"].item() == pytest.approx(1.0, abs=1e-5)
    assert losses["loss_pixels"].item() < 0.8
