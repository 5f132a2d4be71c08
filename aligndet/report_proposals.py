"""The section of a report that shows what a pre-training took for objects."""

from __future__ import annotations

from pathlib import Path

from aligndet.image_inputs import as_image
from aligndet.markup import figure
from aligndet.report_pictures import Validation, corners, data_uri, scaled
from aligndet.run_files import MOST_BYTES, RunFiles
from data.coco_json import load_coco
from data.counting import count
from data.proposals.pictures import BOXES, draw_ranked, evenly_spaced

PICTURES = 4


def proposals_section(run: RunFiles) -> str:
    """Four images with the boxes that pre-training had of them; "" if these are in no file, in one
    that takes long to read, or no longer there."""
    train, limit = run.data.train, run.settings.box_domain.max_proposals
    path = Path(train.proposals or "")
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return ""
    data = Validation.of(load_coco(path), train.images or "", run.data.reading)
    images = {data.files[image]: image for image, boxes in data.objects.items() if boxes}
    shown = []
    for name in evenly_spaced(sorted(images), PICTURES):
        file = data.folder / name
        if file.is_file():
            image, scale = scaled(as_image(file, data.reading))
            used = corners(data.objects[images[name]][:limit]) * scale
            drawn = draw_ranked(image, used[:BOXES].numpy())
            caption = f"{file.name}, {count(len(used), 'box', 'boxes')}"
            shown.append(figure(data_uri(drawn), caption))
    if not shown:
        return ""
    text = (
        "<p>What it took for objects: the five best boxes of an image in bold, red, yellow, green, "
        "light blue, blue, and thirty at most. They should lie on things, not on all things.</p>"
    )
    return f'<h3>Proposals</h3>{text}<div class="row">{"".join(shown)}</div>'
