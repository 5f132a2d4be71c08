"""MoCo against a slow NumPy transcription of its algorithm 1; the queue, shuffling, two ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aligndet import dist
from aligndet.image_domain import build_trained_backbone
from aligndet.moco import KeyQueue, MoCo, MoCoConfig
from models.backbone_base import StagedBackbone
from models.grouped_batch_norm import GroupedBatchNorm2d
from tests.helpers.double_precision import double_precision
from train import step_seed

QUEUE, WIDTH, BATCH, TEMPERATURE, MOMENTUM = 10, 6, 4, 0.2, 0.9
CONFIG = MoCoConfig(WIDTH, QUEUE, TEMPERATURE, MOMENTUM)


class TinyBackbone(StagedBackbone):
    """One 1x1 convolution instead of a backbone: its pooled output is linear."""

    channels = (8,)
    stages = []

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, images):
        return [self.conv(images)]


def views(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, 3, 2, 2, generator=generator) for _ in range(2)]


def as_numpy(module):
    return {k: v.detach().double().numpy().copy() for k, v in module.named_parameters()}


def encode(weights, images):
    """The tiny encoder in NumPy: (N, 3, S, S) to unit vectors (N, D)."""
    x = images.double().numpy().mean(axis=(2, 3))
    x = x @ weights["backbone.conv.weight"][:, :, 0, 0].T + weights["backbone.conv.bias"]
    x = np.maximum(x @ weights["head.0.weight"].T + weights["head.0.bias"], 0)
    x = x @ weights["head.2.weight"].T + weights["head.2.bias"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.usefixtures("double_precision")
def test_steps_equal_the_pseudocode():
    """Seven steps: the queue of ten is filled and overwritten, even in the middle of a batch."""
    torch.manual_seed(0)
    moco = MoCo(TinyBackbone(), CONFIG)
    optimizer = torch.optim.SGD(moco.online.parameters(), lr=0.5)
    queue = list(moco.queue.keys.double().numpy().copy())  # the oldest first
    f_k = as_numpy(moco.online)  # f_k starts as f_q
    losses = []
    for step in range(7):
        x_q, x_k = views(step)
        q, k = encode(as_numpy(moco.online), x_q), encode(f_k, x_k)
        expected = []
        for i in range(BATCH):
            logits = np.array([q[i] @ k[i], *(q[i] @ n for n in queue)]) / TEMPERATURE
            expected.append(np.log(np.exp(logits).sum()) - logits[0])
        loss = moco({"views": [x_q, x_k]})[0]["loss_contrast"]
        assert loss.item() == pytest.approx(np.mean(expected), rel=1e-9)
        losses.append(loss.item())

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moco.update_target(step, 7)
        f_q = as_numpy(moco.online)
        f_k = {name: MOMENTUM * f_k[name] + (1 - MOMENTUM) * f_q[name] for name in f_k}
        for name, value in as_numpy(moco.target).items():
            np.testing.assert_allclose(value, f_k[name], rtol=1e-9, atol=1e-9)

        queue = (queue + list(k))[-QUEUE:]
        oldest = int(moco.queue.oldest)
        ours = moco.queue.keys.roll(-oldest, dims=0).double().numpy()
        np.testing.assert_allclose(ours, np.array(queue), rtol=1e-9, atol=1e-9)
    assert np.std(losses) > 0.01


@pytest.mark.usefixtures("double_precision")
def test_gradients_equal_those_of_the_loss_written_out():
    torch.manual_seed(0)
    moco = MoCo(TinyBackbone(), CONFIG)
    x_q, x_k = views(0)
    others = moco.queue.keys.clone()
    moco({"views": [x_q, x_k]})[0]["loss_contrast"].backward()
    gradients = [p.grad.clone() for p in moco.online.parameters()]
    moco.zero_grad()
    q, k = moco.online(x_q), moco.target(x_k)
    terms = []
    for i in range(BATCH):
        positive = (q[i] @ k[i] / TEMPERATURE).exp()
        terms.append(-(positive / (positive + (others @ q[i] / TEMPERATURE).exp().sum())).log())
    torch.stack(terms).mean().backward()
    for gradient, parameter in zip(gradients, moco.online.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert all(p.grad is None for p in moco.target.parameters())


def test_statistics_by_hand():
    moco = MoCo(TinyBackbone(), CONFIG)
    x, _ = views(0)
    _, statistics = moco({"views": [x, x]})  # both encoders are equal at the start
    assert statistics["retrieval"] == 1.0
    assert statistics["cos_positive"].item() == pytest.approx(1.0)
    _, statistics = moco({"views": [x, x]})  # the same keys are in the queue now: a tie
    assert statistics["cos_positive"].item() == pytest.approx(1.0)
    moco.queue.keys.copy_(-moco.queue.keys)
    others, key = moco.queue.keys.clone(), moco.target(x)
    _, statistics = moco({"views": [x, x.flip(0)]})
    assert statistics["cos_positive"] < 1
    cosines = [float(q @ k) for q in key for k in others]
    assert statistics["cos_negative"].item() == pytest.approx(np.mean(cosines), abs=1e-5)
    assert moco.loss_at_chance == pytest.approx(math.log(1 + QUEUE))


def test_forward_passes_of_a_step_can_be_undone():
    """Two passes over the end of the queue of ten, after a step that stays."""
    moco = MoCo(TinyBackbone(), CONFIG)
    moco({"views": views(0)})
    moco.update_target(0, 3)
    before = {name: tensor.clone() for name, tensor in moco.queue.state_dict().items()}
    moco({"views": views(1)})
    moco({"views": views(2)})
    assert not torch.equal(moco.queue.keys, before["keys"])
    moco.undo_forward()
    assert before["oldest"] == BATCH
    assert all(torch.equal(moco.queue.state_dict()[name], before[name]) for name in before)


def test_the_queue_starts_with_unit_vectors_and_forgets_the_oldest():
    queue = KeyQueue(5, 3)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(5))
    numbered = torch.arange(1.0, 9.0)[:, None].expand(8, 3)
    queue.enqueue(numbered[:2])
    queue.enqueue(numbered[2:4])
    queue.enqueue(numbered[4:7])  # one at the end, two at the front
    assert queue.keys[:, 0].tolist() == [6, 7, 3, 4, 5]
    assert queue.oldest == 2
    queue.enqueue(numbered[:5])  # as many as there are places
    assert queue.keys[:, 0].tolist() == [4, 5, 1, 2, 3]


def shuffled(groups, train):
    """Keys of images by `shuffled_keys` and by the target itself."""
    torch.manual_seed(0)
    moco = MoCo(build_trained_backbone("resnet18", groups), CONFIG).train(train)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        return moco.shuffled_keys(images), moco.target(images)


@pytest.mark.usefixtures("double_precision")
def test_keys_come_in_the_order_of_their_images():
    keys, expected = shuffled(groups=4, train=False)
    torch.testing.assert_close(keys, expected, rtol=1e-9, atol=1e-9)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # another order would show


@pytest.mark.usefixtures("double_precision")
def test_keys_are_normalised_with_other_images_than_queries():
    keys, same_company = shuffled(groups=4, train=True)
    assert (keys - same_company).abs().max() > 1e-2
    # A single group always holds the same images: shuffling alone would do nothing.
    keys, same_company = shuffled(groups=1, train=True)
    torch.testing.assert_close(keys, same_company, rtol=1e-9, atol=1e-9)


class TinyNormedBackbone(TinyBackbone):
    """With BatchNorm in `groups`."""

    def __init__(self, groups):
        super().__init__()
        self.norm = GroupedBatchNorm2d(8, groups)

    def forward(self, images):
        return [self.norm(self.conv(images).square())]


def train_tiny(steps=6):
    """What `fit` does with this rank's share of eight images; the state and the losses."""
    torch.manual_seed(0)
    groups = 4 // dist.world_size()
    moco = MoCo(TinyNormedBackbone(groups), MoCoConfig(WIDTH, 20, TEMPERATURE, MOMENTUM)).train()
    moco.online.head[1] = moco.target.head[1] = nn.Softplus()
    model = DistributedDataParallel(moco, broadcast_buffers=False) if dist.in_group() else moco
    optimizer = torch.optim.SGD(moco.online.parameters(), lr=0.2)
    generator, losses = torch.Generator().manual_seed(1), []
    for step in range(steps):
        views = [torch.randn(8, 3, 3, 3, generator=generator) for _ in range(2)]
        mine = [view.chunk(dist.world_size())[dist.rank()] for view in views]
        torch.manual_seed(step_seed(0, step, 0, dist.rank()))
        loss = model({"views": mine})[0]["loss_contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moco.update_target(step, steps)
        losses.append(dist.mean_over_ranks_of({"loss": loss})["loss"])
    return {**moco.state_dict(), "losses": torch.tensor(losses)}


def rank_main(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2
    )
    with double_precision():
        torch.save(train_tiny(), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("double_precision")
def test_two_ranks_equal_one_over_several_steps(tmp_path):
    """Keys are shuffled over both ranks and all go into both queues; statistics are shared."""
    mp.spawn(rank_main, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    one = train_tiny()
    assert one["queue.oldest"] == 8  # 48 keys in 20 places
    for key, value in one.items():
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-9, atol=1e-9, msg=key)
        assert torch.equal(ranks[0][key], ranks[1][key]), key
    assert one["losses"].std() > 0.01
    assert (one["target.backbone.conv.weight"] - one["online.backbone.conv.weight"]).std() > 1e-4


def test_the_target_starts_as_a_copy_and_is_not_trained():
    moco = MoCo(build_trained_backbone("mobilenet_v2", 1), CONFIG)
    online, target = moco.online.state_dict(), moco.target.state_dict()
    assert all(torch.equal(online[key], target[key]) for key in online)
    assert not any(p.requires_grad for p in moco.target.parameters())
    assert all(p.requires_grad for p in moco.online.parameters())
    assert moco.weights().keys() == moco.backbone.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "image.moco.temperature is 0.0; it must be above 0"),
        ({"momentum": 1.5}, "image.moco.momentum is 1.5; it must be at least 0 and at most 1"),
        ({"queue": 0}, "image.moco.queue is 0; it must be at least 1"),
        ({"embedding_width": -1}, "image.moco.embedding_width is -1; it must be at least 1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        MoCoConfig(**change)


def test_a_step_must_fit_into_the_queue():
    CONFIG.check_batch(10)
    with pytest.raises(ValueError, match="image.moco.queue is 10, less than the 11 images"):
        CONFIG.check_batch(11)
