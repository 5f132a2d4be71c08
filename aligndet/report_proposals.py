"""The section of a report that shows what a pre-training took for objects."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.ops import box_convert

from aligndet.config import load_config
from aligndet.image_inputs import as_image
from aligndet.markup import figure
from aligndet.report_pictures import data_uri, scaled
from aligndet.run_files import RunFiles
from data.coco_json import load_coco
from data.counting import count
from data.proposals.pictures import BOXES, draw_ranked, evenly_spaced

PICTURES = 4
MOST_BYTES = 50_000_000  # of a file that is read for them


def proposals_section(run: RunFiles) -> str:
    """Four images with the boxes that pre-training had of them; "" if these are in no file, in one
    that takes long to read, or no longer there."""
    data = run.data
    path = Path(data.train.proposals or "")
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return ""
    limit = load_config(run.path / "config.yaml").box_domain.max_proposals
    content = load_coco(path)
    boxes: dict[int, list[list[float]]] = {}
    for entry in content["annotations"]:
        boxes.setdefault(entry["image_id"], []).append(entry["bbox"])
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    shown = []
    for name in evenly_spaced(sorted(name for name in ids if ids[name] in boxes), PICTURES):
        file = Path(data.train.images or "") / name
        if file.is_file():
            image, scale = scaled(as_image(file, data.reading))
            used = torch.tensor(boxes[ids[name]][:limit])
            corners = box_convert(used, "xywh", "xyxy") * scale
            drawn = draw_ranked(image, corners[:BOXES].numpy())
            caption = f"{file.name}, {count(len(used), 'box', 'boxes')}"
            shown.append(figure(data_uri(drawn), caption))
    if not shown:
        return ""
    text = (
        "<p>What it took for objects: the five best boxes of an image in bold, red, yellow, green, "
        "light blue, blue, and thirty at most. They should lie on things, not on all things.</p>"
    )
    return f'<h3>Proposals</h3>{text}<div class="row">{"".join(shown)}</div>'
