"""MoCo v2 (He et al., CVPR 2020, algorithm 1; Chen et al., arXiv 2003.04297): each view must
recognise the other view of its image among a queue of others.

The query comes from the online encoder, the keys from its moving average, so that keys of earlier
batches remain comparable.

Legend: N images of this process, B of all processes, S pixels, C channels of the last map, D
embedding width, Q keys in the queue.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligndet import dist
from aligndet.momentum import update_target
from losses.info_nce import info_nce_logits, info_nce_loss
from models.backbone_base import StagedBackbone
from models.checks import require_range
from models.classifier import pooled_features


@dataclass(frozen=True)
class MoCoConfig:
    """The `image.moco` section."""

    embedding_width: int = 128  # D
    queue: int = 65536  # Q; fewer than the dataset has images
    temperature: float = 0.2  # T
    momentum: float = 0.999  # of the key encoder, constant

    def __post_init__(self) -> None:
        require_range("image.moco.temperature", self.temperature, above=0)
        require_range("image.moco.momentum", self.momentum, least=0, most=1)
        for key in ("embedding_width", "queue"):
            require_range(f"image.moco.{key}", getattr(self, key), least=1)

    def check_batch(self, images: int) -> None:
        """Check that the keys of a step fit into the queue.

        Raises:
            ValueError: they do not; names the config keys to change.
        """
        if self.queue < images:
            raise ValueError(
                f"image.moco.queue is {self.queue}, less than the {images} images of a step; "
                "raise it or lower data.batch_size"
            )


class Encoder(nn.Module):
    """Backbone, mean over its last map, and two linear layers, which the next stage drops."""

    def __init__(self, backbone: StagedBackbone, width: int) -> None:
        super().__init__()
        channels = backbone.channels[-1]
        self.backbone = backbone
        backbone.skip_maps(3)
        self.head = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, width)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) to L2-normalised embeddings (N, D), float32."""
        return F.normalize(self.head(pooled_features(self.backbone, images)).float(), dim=1)


class KeyQueue(nn.Module):
    """The latest Q keys, first in, first out; random unit vectors at the start."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, width), dim=1))  # (Q, D)
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))  # index to write to next
        self.replaced: list[tuple[Tensor, Tensor]] = []  # keys (B, D) and their first index

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by `keys` (B, D); B is at most Q."""
        places = self._places(self.oldest, len(keys))
        self.replaced.append((self.keys[places], self.oldest.clone()))
        self.keys[places] = keys
        self.oldest.copy_((places[-1] + 1) % len(self.keys))

    @torch.no_grad()
    def undo(self) -> None:
        """Put back the keys that were replaced since `replaced` was last empty."""
        while self.replaced:
            keys, first = self.replaced.pop()
            self.keys[self._places(first, len(keys))] = keys
            self.oldest.copy_(first)

    def _places(self, first: Tensor, count: int) -> Tensor:
        """(count,) indices from `first` on; after the last comes 0."""
        return (first + torch.arange(count, device=first.device)) % len(self.keys)


class MoCo(nn.Module):
    """The task of `train.fit`.

    Args:
        backbone: with BatchNorm in groups, see `shuffled_keys`; modified in place.
        config: of the method.
    """

    def __init__(self, backbone: StagedBackbone, config: MoCoConfig) -> None:
        super().__init__()
        self.config = config
        self.online = Encoder(backbone, config.embedding_width)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.queue = KeyQueue(config.queue, config.embedding_width)

    @property
    def backbone(self) -> StagedBackbone:
        """The part that the next stage starts from."""
        return self.online.backbone

    def forward(
        self, batch: dict[str, Any], with_statistics: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step's loss; afterwards the keys enter the queue.

        Args:
            batch: from `collate_image_views`, with two views.
            with_statistics: whether this step logs statistics.

        Returns:
            `loss_contrast`; how often the key of the same image is the most similar of all
            (`retrieval`), and the mean cosines of a query with its key and with those of the queue.
        """
        view1, view2 = batch["views"]
        query = self.online(view1)  # (N, D)
        keys = self.shuffled_keys(view2)  # (B, D)
        mine = keys.chunk(dist.world_size())[dist.rank()]  # (N, D)
        # The backward pass needs the queue as it is now.
        others = self.queue.keys.clone()  # (Q, D)
        logits = info_nce_logits(query, mine, others, self.config.temperature)
        loss = info_nce_loss(logits)
        self.queue.enqueue(keys)
        if not with_statistics:
            return {"loss_contrast": loss}, {}
        statistics = {
            "retrieval": (logits.argmax(dim=1) == 0).float().mean(),
            "cos_positive": logits[:, 0].mean().detach() * self.config.temperature,
            "cos_negative": logits[:, 1:].mean().detach() * self.config.temperature,
        }
        return {"loss_contrast": loss}, statistics

    @torch.no_grad()
    def shuffled_keys(self, images: Tensor) -> Tensor:
        """Keys (B, D) of all processes' images, in the order of the images.

        BatchNorm's statistics reveal which images were normalised together, and thus which key
        belongs to a query, without looking at the image (section 3.3, "shuffling BN"). So the
        images of all processes are shuffled before their keys are computed: a query and its key are
        normalised among different images. A single process needs BatchNorm in groups for that.
        """
        images = dist.all_gather(images)  # (B, 3, S, S)
        order = dist.broadcast(torch.randperm(len(images)).to(images.device, non_blocking=True))
        mine = order.chunk(dist.world_size())[dist.rank()]
        keys = dist.all_gather(self.target(images[mine]))
        return keys[order.argsort()]

    def update_target(self, step: int, total_steps: int) -> dict[str, float]:
        """Move the key encoder towards the online one; average BatchNorm statistics over ranks."""
        self.queue.replaced.clear()
        dist.average_statistics(self.online)
        update_target(self.target, self.online, self.config.momentum)
        return {}

    @property
    def loss_at_chance(self) -> float:
        """The loss if all similarities are equal."""
        return math.log(1 + self.config.queue)

    def undo_forward(self) -> None:
        """Make the queue what it was before the step, whose forward passes have changed it."""
        self.queue.undo()

    @property
    def linear(self) -> None:
        """There is no classification layer."""
        return None

    def notes(self, num_images: int) -> list[str]:
        """What to know before training on this many images."""
        if self.config.queue <= num_images:
            return []
        return [
            f"image.moco.queue is {self.config.queue:,}, but there are {num_images:,} images: it "
            "will hold keys of the query's own image as negatives; set it lower"
        ]

    def weights(self) -> dict[str, Tensor]:
        """The online backbone under torchvision's names."""
        return self.backbone.state_dict()
