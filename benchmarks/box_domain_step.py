"""One step of box-domain pre-training: the authors' formulation against ours, time and peak memory.

`python benchmarks/box_domain_step.py`: one noise image of 320 px with 300 proposals, ResNet-50,
float32, one thread; each measured in processes of its own, in turns. With two images, theirs takes
up to 10 GB.

The authors' formulation is written here after the paper and what their published code computes:

- two full detectors, online and momentum, each with a frozen backbone of its own, which both run;
- the momentum detector runs its box branch as well, and every prediction is embedded (all nine
  anchors of each cell in RetinaNet), before 2048 of them are sampled;
- the loss goes through the instances one by one; for each, the features of all its negatives are
  normalised, and copied once per target sample of the instance, to be the candidates of a cross
  entropy;
- so memory grows with samples times negatives times the embedding's width, and only the first 50
  proposals of an image are used (`--their-boxes`);
- the momentum detector, backbone included, is updated parameter by parameter, and SGD is PyTorch's
  default.

Layers, assignment, sampling and box losses are ours in both, as is the convolution that includes a
fixed BatchNorm, so the difference is that of the formulation. Ours uses all proposals, keeps maps
channels-last and logs its statistics. In both, Faster R-CNN's RPN proposes boxes that all overlap a
proposal, as a trained one does.

Legend: N images, A predictions, S samples, D embedding width, Q and P samples of an instance in the
two views, B negatives.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from peak_memory import PeakMemory, resident
from pretrain_step import PAPER, trained_rpn, two_views
from torch import Tensor, nn

from aligndet.adapters import BranchOutput, adapter_class
from aligndet.box_domain import BoxDomain, BoxDomainConfig, instance_ids
from aligndet.momentum import momentum_at
from aligndet.optim import OptimConfig, build_optimizer
from models import ModelConfig, build_detector
from models.anchors import flatten_predictions
from models.assign import look_up
from models.sampling import over_batch, sample_balanced

TEMPERATURE = 0.5  # the paper's
WIDTH = 256  # D


class Theirs(nn.Module):
    """The authors' formulation; see the top of this file."""

    def __init__(self, detector: nn.Module, name: str, boxes: int) -> None:
        super().__init__()
        self.boxes, self.branch = boxes, BRANCHES[name]
        detector.backbone.freeze(len(detector.backbone.stages))
        self.online = adapter_class(name)(detector, WIDTH, None)
        self.momentum = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses to sum; no statistics."""
        view1, view2 = ({**v, "boxes": [b[: self.boxes] for b in v["boxes"]]} for v in batch)
        ids = instance_ids(view1["boxes"])
        with torch.no_grad():
            key = self.branch(self.momentum, view2, ids)
        query = self.branch(self.online, view1, ids)
        loss = looped_loss(query.embeddings, key.embeddings, query.ids, key.ids)
        return {"loss_contrast": loss, **query.losses}, {}

    @torch.no_grad()
    def update_target(self, step: int, total_steps: int) -> None:
        """The momentum detector follows the online one, parameter by parameter."""
        momentum = momentum_at(step, total_steps)
        for mine, theirs in zip(self.momentum.parameters(), self.online.parameters(), strict=True):
            mine.data = mine.data * momentum + theirs.data * (1.0 - momentum)


def looped_loss(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """The equation at the top of losses/contrastive.py, instance by instance."""
    pool, pool_ids = torch.cat([key, query.detach()]), torch.cat([key_ids, query_ids])
    losses = []
    for instance in query_ids[query_ids >= 0].unique():
        mine = F.normalize(query[query_ids == instance])  # (Q, D)
        theirs = F.normalize(key[key_ids == instance])  # (P, D)
        if len(theirs) == 0:
            continue
        negatives = F.normalize(pool[pool_ids != instance])  # (B, D)
        copies = negatives.expand(len(theirs), -1, -1)
        candidates = torch.cat((theirs[:, None], copies), dim=1)  # (P, 1 + B, D)
        logits = mine @ candidates.transpose(1, 2) / TEMPERATURE  # (P, Q, 1 + B)
        logits = logits.flatten(0, 1)
        losses.append(F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64)))
    return torch.stack(losses).mean() if losses else query.sum() * 0.0


def fcos(adapter: nn.Module, view: dict[str, Any], ids: list[Tensor]) -> BranchOutput:
    """A full FCOS with embeddings instead of classes."""
    detector, head = adapter.detector, adapter.detector.head
    pyramid = detector.pyramid(view["images"])
    cls_features, box_features = head.towers(pyramid)
    maps = [adapter.projector(x) for x in cls_features]
    embeddings = flatten_predictions(maps, per_cell=1).flatten(0, 1)  # (N * A, D)
    distances, centerness = head.boxes_from(box_features)
    points, strides = detector.points_for(pyramid)
    matched = detector.assign(points, strides, view["boxes"])
    of_point = torch.cat(look_up(ids, matched))
    (chosen,) = sample_balanced([of_point], adapter.samples, positive_fraction=1.0)
    losses = detector.box_losses(distances, centerness, points, matched, view["boxes"])
    return BranchOutput(embeddings[chosen], of_point[chosen], losses, matched)


def retinanet(adapter: nn.Module, view: dict[str, Any], ids: list[Tensor]) -> BranchOutput:
    """A full RetinaNet with embeddings instead of classes."""
    detector, head = adapter.detector, adapter.detector.head
    pyramid = detector.pyramid(view["images"])
    cls_features, box_features = head.towers(pyramid)
    convolution, relu, linear = adapter.projector.layers
    hidden = [relu(convolution(x)) for x in cls_features]
    maps = [F.conv2d(x, linear.weight[:, :, None, None], linear.bias) for x in hidden]
    embeddings = flatten_predictions(maps, head.num_anchors).flatten(0, 1)  # (N * A, D)
    deltas = head.deltas_from(box_features)
    anchors = detector.anchors_for(pyramid)
    matched = detector.assign(anchors, view["boxes"])
    of_anchor = look_up(ids, matched)
    of_image = sample_balanced(of_anchor, adapter.samples, positive_fraction=1.0)
    chosen = over_batch(of_image, len(anchors))
    losses = detector.box_losses(deltas, anchors, matched, view["boxes"])
    return BranchOutput(embeddings[chosen], torch.cat(of_anchor)[chosen], losses, matched)


def faster_rcnn(adapter: nn.Module, view: dict[str, Any], ids: list[Tensor]) -> BranchOutput:
    """A full Faster R-CNN; its second stage is that of our adapter, box losses in both branches."""
    features = adapter.detector.backbone(view["images"])
    return adapter(features, view, ids, with_losses=True)


BRANCHES = {"fcos": fcos, "retinanet": retinanet, "faster_rcnn": faster_rcnn}


def build(who: str, name: str, their_boxes: int) -> nn.Module:
    """The task of one of the two formulations."""
    torch.manual_seed(0)
    config = ModelConfig(detector=name, backbone="resnet50", options=PAPER.get(name, {}))
    detector = build_detector(config, 1)
    if who == "theirs":
        return Theirs(detector, name, their_boxes)
    task = BoxDomain(
        detector, name, BoxDomainConfig(temperature=TEMPERATURE, embedding_width=WIDTH)
    )
    return task.to(memory_format=torch.channels_last)


def measure(who: str, name: str, settings: dict[str, int]) -> dict[str, float]:
    """Processor seconds and gigabytes of one formulation, in a fresh process."""
    torch.set_num_threads(1)
    side, boxes = settings["side"], settings["boxes"]
    batch = two_views(settings["images"], side, side, boxes)
    start = resident()
    with PeakMemory() as peak:
        task = build(who, name, settings["their_boxes"]).train()
        optimizer = build_optimizer(task, OptimConfig(), fused=who == "ours")
        if name == "faster_rcnn":
            let_rpn_propose(who, task, batch, settings)
        seconds = [timed(lambda: step(task, optimizer, batch)) for _ in range(settings["steps"])]
    return {
        "seconds": statistics.median(seconds[1:]),  # the first one also allocates
        "gigabytes": peak.bytes / 1e9,
        "process": (start + peak.bytes) / 1e9,
    }


def step(task: nn.Module, optimizer: torch.optim.Optimizer, batch: list[dict[str, Any]]) -> None:
    """One step of the loop in train.py."""
    torch.manual_seed(0)
    optimizer.zero_grad(set_to_none=True)
    losses, _ = task(batch)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    task.update_target(0, 2)


def timed(run: Callable[[], None]) -> float:
    """Processor seconds of a run; see `PeakMemory`, whose thread counts a little, too."""
    start = time.process_time()
    run()
    return time.process_time() - start


def let_rpn_propose(
    who: str, task: nn.Module, batch: list[dict[str, Any]], settings: dict[str, int]
) -> None:
    """As many proposals per image as `--rois` says, all on a box that is used."""
    used = settings["their_boxes"] if who == "theirs" else settings["boxes"]
    branches = (task.online, task.momentum if who == "theirs" else task.target)
    for branch, view in zip(branches, batch, strict=True):
        propose = trained_rpn([b[:used] for b in view["boxes"]])

        def limited(
            output: Any, sizes: Any, topk: int, limit: int, propose: Any = propose
        ) -> list[Tensor]:
            return propose(output, sizes, topk, min(limit, settings["rois"]))

        branch.detector.rpn.propose = limited


def main() -> None:
    """Parse the command line, measure in turns, print a line per detector and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--detectors", nargs="+", choices=BRANCHES, default=list(BRANCHES))
    add("--images", type=int, default=1)
    add("--side", type=int, default=320, help="px")
    add("--boxes", type=int, default=300, help="proposals per image; ours uses all")
    add("--their-boxes", type=int, default=50, help="the first ones, which theirs uses")
    add("--rois", type=int, default=500, help="of the RPN per image")
    add("--steps", type=int, default=3, help="per process; the first is not timed")
    add("--rounds", type=int, default=3, help="processes of each")
    settings = vars(parser.parse_args())
    spawn = multiprocessing.get_context("spawn")
    print(f"torch {torch.__version__}, CPU, 1 thread, processor seconds")
    results = {}
    for name in settings["detectors"]:
        found: dict[str, list[dict[str, float]]] = {"theirs": [], "ours": []}
        for _ in range(settings["rounds"]):
            for who, values in found.items():
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    values.append(pool.submit(measure, who, name, settings).result())
        results[name] = result = {
            who: {key: statistics.median(v[key] for v in values) for key in values[0]}
            for who, values in found.items()
        }
        theirs, ours = result["theirs"], result["ours"]
        for key in ("seconds", "gigabytes"):
            result[f"{key}_ratio"] = theirs[key] / ours[key]
        print(
            f"  {name:12} theirs {theirs['seconds']:.2f} s, {theirs['gigabytes']:.2f} GB; ours "
            f"{ours['seconds']:.2f} s, {ours['gigabytes']:.2f} GB; theirs / ours "
            f"{result['seconds_ratio']:.2f} in time, {result['gigabytes_ratio']:.2f} in memory"
        )
    print(json.dumps({"device": "CPU, 1 thread", "settings": settings, "results": results}))


if __name__ == "__main__":
    main()
