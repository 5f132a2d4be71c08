"""Put proposals into clusters that pre-training can tell apart like classes.

    python -m data.clusters --config pretrain.yaml --output FILE.json [key=value ...]
    python -m data.clusters --images DIR --proposals FILE.json --backbone NAME --weights FILE \\
        --output FILE.json

The output is the file of proposals with a category for each cluster; give it as
`data.train.proposals`, and the boxes of the views have `labels`. A command that was killed goes on
when it is started again; one whose output is there computes nothing.

Legend: P boxes of one image.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from aligndet import cli, dist
from aligndet.cluster_options import Request, read_request
from aligndet.cluster_sheet import draw_sheet
from aligndet.clusters import assign_clusters, work_digest
from data import stopping
from data.box_labels import BoxLabels
from data.coco import CLUSTERS, CocoDataset
from data.coco_file import open_coco
from data.counting import count
from data.errors import DataError
from data.image_check import reading_entry
from data.packed_file import is_packed
from data.plain_text import say, say_all
from data.proposals.output import Found, write_boxes
from models.backbone import build_backbone
from models.backbone_base import StagedBackbone
from models.backbone_weights import load_backbone_weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 for bad input, 128 and its number after a signal."""
    try:
        with stopping.signals(), cli.explained_errors():
            run(read_request(arguments))
    except (ValueError, OSError, MemoryError) as error:
        say(f"error: {error}", sys.stderr)
        return 1
    except stopping.Stopped as stop:
        say(f"{stop}; the same command goes on from here", sys.stderr)
        return stop.status
    return 0


def run(request: Request) -> None:
    """Write the clusters, and the sheet if one is asked for."""
    device = dist.choose_device(request.device)
    source = open_proposals(request, request.proposals)
    backbone = trained_backbone(request).to(device, memory_format=torch.channels_last)
    output, digest = request.output, work_digest(source, backbone, request.settings)
    if made_before(request, digest):
        say(f"{output}: has the clusters of the same boxes, weights and settings already")
        labels = read_labels(open_proposals(request, output))
    else:
        kept = output.with_name(f".{output.name}.partial.pt")
        labels = assign_clusters(
            source,
            backbone,
            request.settings,
            device,
            batch_size=request.batch_size,
            workers=request.workers,
            skip_bad=request.reading.on_bad_image == "skip",
            kept=kept,
        )
        write_clusters(source, labels, request, digest)
        kept.unlink(missing_ok=True)
    used = len(np.unique(labels.values))
    boxes = count(len(labels.values), "box", "boxes")
    say(f"{output}: {boxes} in {used:,} of {labels.count:,} clusters")
    if request.sheet is not None:
        draw_sheet(source, labels, request.sheet, request.settings.seed)
        say(f"sheet: {request.sheet}")


def open_proposals(request: Request, path: Path) -> CocoDataset:
    """A file of boxes, read as pre-training reads it."""
    return CocoDataset(
        request.images,
        path,
        bad_boxes=request.bad_boxes,
        crowd=request.crowd,
        reading=request.reading,
        allow_outside=request.allow_outside,
        with_masks=request.masks,
    )


def trained_backbone(request: Request) -> StagedBackbone:
    """The frozen backbone with its weights; says where they come from."""
    backbone = build_backbone(request.backbone, frozen_stages=5)
    origin = load_backbone_weights(backbone, request.weights, request.partial)
    say_all(origin.summary().splitlines())
    return backbone.eval()


def made_before(request: Request, digest: str) -> bool:
    """Whether the output is there and is what this command would write."""
    output = request.output
    if not output.exists() or is_packed(output) != request.packed:
        return False
    try:
        info = open_coco(output).info
    except DataError:  # it is written anew
        return False
    made = info.get(CLUSTERS) if isinstance(info, dict) else None
    return isinstance(made, dict) and made.get("digest") == digest


def read_labels(source: CocoDataset) -> BoxLabels:
    """The clusters in a file that this command wrote."""
    ends = np.cumsum([0, *source.records.box_counts().tolist()], dtype=np.int64)
    values = source.records.labels().astype(np.int32)
    return BoxLabels(values, ends, len(source.categories))


def write_clusters(source: CocoDataset, labels: BoxLabels, request: Request, digest: str) -> None:
    """Write the boxes with their clusters as categories 1..K.

    Raises:
        StorageError: the file cannot be written.
    """
    records, coco = source.records, source.coco
    images = [
        {"id": coco.image_id(place), "file_name": name, "height": height, "width": width}
        for place, name, (height, width) in zip(
            records.images.tolist(), records.file_names, records.sizes.tolist(), strict=True
        )
    ]
    categories = [{"id": k, "name": f"cluster {k}"} for k in range(1, labels.count + 1)]
    made = {
        "digest": digest,
        "backbone": request.backbone,
        "weights": request.weights,
        **asdict(request.settings),
    }
    info = {**reading_entry(request.reading), CLUSTERS: made}
    found = labelled_boxes(source, labels)
    write_boxes(images, found, categories, request.output, info, request.packed, request.masks)


def labelled_boxes(source: CocoDataset, labels: BoxLabels) -> Iterator[Found]:
    """Of each image the boxes that have a cluster, as they are in the file."""
    rle = None if source.records.masks is None else source.records.masks.rle
    for block in source.records.blocks():
        xywh, rows, start = block.boxes.xywh[block.used], block.rows[block.used], 0
        for place, number in zip(block.places, block.used_counts.tolist(), strict=True):
            ids = labels[place].numpy() + 1
            mine = slice(start, start + len(ids))
            masks = None if rle is None else list(map(rle, rows[mine].tolist()))
            yield Found(xywh[mine], ids, masks)
            start += number


if __name__ == "__main__":
    sys.exit(main())
