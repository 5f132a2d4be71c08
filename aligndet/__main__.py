"""`python -m aligndet`: what there is to run, with a line each."""

from __future__ import annotations

GROUPS = {
    "data": {
        "data.convert": "labels of VOC or YOLO to COCO JSON",
        "data.voc": "several years of Pascal VOC to one COCO JSON",
        "data.check": "look at images, labels and proposals before training",
        "data.subset": "a fixed part of the labelled images",
        "data.proposals": "boxes by selective search, for pre-training",
        "data.proposals.cache_folders": "list and remove what is kept of boxes found in training",
        "data.clusters": "pseudo-classes of these boxes",
        "data.shapes": "a generated dataset with boxes and masks",
        "data.single_shapes": "generated pictures of one shape each",
    },
    "training": {
        "pretrain": "stage 1 (--stage image) and stage 2 of pre-training",
        "finetune": "fine-tuning and evaluation",
    },
    "results": {
        "aligndet.predict": "draw detections on images",
        "aligndet.report": "one page about runs: verdict, curves, errors, pictures",
        "aligndet.errors": "what a detector gets wrong, and what it costs",
        "aligndet.probe": "how well a backbone's features tell classes apart",
        "aligndet.export": "a detector for other programs: ONNX and two more",
        "aligndet.export_backbone": "a backbone for other code",
        "aligndet.replay": "the step again whose numbers were not finite",
        "aligndet.demo": "the whole method on the generated dataset (make demo)",
    },
}


def listing() -> str:
    """The commands, group by group."""
    width = max(len(command(name)) for group in GROUPS.values() for name in group)
    lines = []
    for title, group in GROUPS.items():
        lines += [title, *(f"  {command(n):{width}}  {text}" for n, text in group.items()), ""]
    return "\n".join([*lines, "Each has --help. In what order they are used: README.md."])


def command(name: str) -> str:
    """How a module is run: the two scripts by their file, as torchrun needs them."""
    return f"python -m {name}" if "." in name else f"python {name}.py"


if __name__ == "__main__":
    print(listing())
