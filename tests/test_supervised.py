"""The supervised task: its loss by hand, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from aligndet.image_domain import build_trained_backbone
from aligndet.supervised import Supervised


def test_supervised_loss_and_accuracy_by_hand():
    torch.manual_seed(0)
    task = Supervised(build_trained_backbone("resnet18", 1), num_classes=3, label_smoothing=0.3)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    task.classifier.forward = lambda images: logits
    losses, statistics = task({"views": [None], "labels": torch.tensor([0, 1])})
    # Label smoothing: 0.8 of the target on the class, 0.1 on each other one.
    first = math.log(math.exp(2) + 2) - 0.8 * 2
    second = math.log(math.e + 2) - 0.1 * 1
    assert losses["loss_class"].item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert statistics["accuracy"].item() == 0.5


def test_supervised_learns_three_colours():
    torch.manual_seed(0)
    task = Supervised(build_trained_backbone("resnet18", 1), 3, label_smoothing=0.0).train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(9) % 3
    images = F.one_hot(labels, 3)[:, :, None, None] + 0.3 * torch.randn(9, 3, 32, 32)
    for _ in range(15):
        losses, statistics = task({"views": [images], "labels": labels})
        optimizer.zero_grad()
        losses["loss_class"].backward()
        optimizer.step()
    assert statistics["accuracy"] == 1.0
