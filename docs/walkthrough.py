# %% [markdown]
# # AlignDet, step by step
#
# Most detectors start training with a trained backbone, but a random neck and head. AlignDet
# ([Li et al., 2023](https://arxiv.org/abs/2307.11077)) trains these too, without labels. This
# notebook shows what each step of the method makes of a few small pictures. It calls the functions
# that `pretrain.py` and `finetune.py` call, downloads nothing, and takes about a minute on a CPU.
# [reading.md](reading.md) follows the same path through the code, with all shapes.
#
# `make walkthrough` makes this notebook from [walkthrough.py](walkthrough.py). To run it yourself,
# open it with a Python that has `pip install -r requirements-dev.txt -e .` of this project.

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt

from data.captions import place

temporary = tempfile.TemporaryDirectory()  # it is deleted when Python ends
folder = Path(temporary.name)
# Okabe and Ito's colours, which colour-blind eyes can tell apart
COLOURS = ("#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#009e73", "#d55e00")


def panels(rows, columns, width, height):
    """A grid of axes without ticks on a figure of (width, height) inches, row by row."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], anchor="N")
    return axes.flatten()


def show(axis, picture, title, boxes, captions, colours=COLOURS):
    """A picture with boxes, each with a caption and a colour."""
    axis.imshow(picture, extent=(0, picture.width, picture.height, 0), interpolation="bicubic")
    axis.set_title(title)
    # Letters in pixels of the picture, so that captions find places where they hide little
    letter = max(picture.size) / 46
    sizes = np.array([(letter * (len(str(c)) + 0.7), letter * 2.2) for c in captions])
    places = place(boxes.numpy(), boxes.numpy(), sizes, picture.size)
    for (x1, y1, x2, y2), colour in zip(boxes.tolist(), colours, strict=False):
        corners = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
        axis.plot(*corners, color="black", linewidth=3.5)
        axis.plot(*corners, color=colour, linewidth=2)
    for patch, caption, colour in zip(places, captions, colours, strict=False):
        if patch is not None:
            x, y = patch[0] + 0.3 * letter, patch[1] + 0.4 * letter
            patch_style = {"facecolor": colour, "edgecolor": "black", "linewidth": 0.7, "pad": 2}
            axis.text(x, y, caption, va="top", bbox=patch_style)


# %% [markdown]
# ## 1. A picture
#
# [`generate`](../data/shapes.py) draws the built-in dataset: circles, triangles, stars and rings
# on cluttered backgrounds. The boxes below are its labels. **Pre-training does not see them**; only
# fine-tuning, at the very end, does.

# %%
from data.coco import CocoDataset
from data.shapes import generate

generate(folder / "shapes", train=8, val=1, size=128)
images, annotations = folder / "shapes/images/train", folder / "shapes/annotations/train.json"
labelled = CocoDataset(images, annotations)

EXAMPLES = (5, 4)  # the pictures that are shown below
for axis, index in zip(panels(1, 2, 8, 4), EXAMPLES, strict=True):
    picture, record = labelled.read(index)
    names = [labelled.categories.names[label] for label in record.labels.tolist()]
    colours = [COLOURS[label] for label in record.labels.tolist()]
    show(axis, picture, f"picture {index}: its labels", record.boxes, names, colours)
plt.show()

# %% [markdown]
# ## 2. Boxes without labels: selective search
#
# [`segment`](../data/selective_search/segmentation.py) cuts the picture into small regions of even
# colour. [`group_regions`](../data/selective_search/grouping.py) then merges them: in each round,
# all pairs of neighbours that are more similar to each other than to any other neighbour become
# one, until a single region is left. Below, each region has its mean colour. Watch for the rounds
# in which a shape is one region.

# %%
from data.selective_search import Strategy, selective_search
from data.selective_search.colour_spaces import rgb_to_hsv
from data.selective_search.grouping import group_regions
from data.selective_search.region_features import describe_regions, texture_levels
from data.selective_search.search import rank_boxes
from data.selective_search.segmentation import segment
from data.transforms import pil_to_tensor

picture, _ = labelled.read(EXAMPLES[0])
pixels = pil_to_tensor(picture)[None].float()  # (1, 3, H, W)
inside = torch.ones(1, picture.height, picture.width, dtype=torch.bool)  # no padding
strategy = Strategy("hsv", similarities=("ctsf",))  # colour, texture, size and fill
hsv = rgb_to_hsv(pixels)
limits = torch.tensor([strategy.scale]), torch.tensor([strategy.min_size])
segmentation = segment(hsv, inside, *limits)
regions = describe_regions(segmentation, hsv, texture_levels(pixels, inside))
hierarchy, tree = group_regions([(regions, "ctsf")], inside.flatten(1).sum(dim=1))
ranked = rank_boxes(hierarchy, tree, count=1)[0]
# These are the steps of `selective_search`, one by one:
assert torch.equal(ranked, selective_search([pil_to_tensor(picture)], [strategy])[0])


def regions_after(rounds):
    """(H, W) the region of each pixel, as its row in the hierarchy."""
    of_pixel, row = segmentation.labels[0], torch.arange(len(hierarchy))
    made = segmentation.count
    for one, other in hierarchy.merges[:rounds]:
        row[one] = row[other] = torch.arange(made, made + len(one))
        of_pixel, made = row[of_pixel], made + len(one)
    return of_pixel


def mean_colours(of_pixel):
    """The picture, enlarged, with each region in its mean colour and a dark border."""
    colours = pixels[0].clone()
    for region in of_pixel.unique():
        where = of_pixel == region
        colours[:, where] = pixels[0][:, where].mean(dim=1, keepdim=True)
    colours, of_pixel = (
        x.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2) for x in (colours, of_pixel)
    )
    colours[:, :-1][:, of_pixel[1:] != of_pixel[:-1]] = 30
    colours[:, :, :-1][:, of_pixel[:, 1:] != of_pixel[:, :-1]] = 30
    return colours.permute(1, 2, 0).byte()


axes = panels(2, 3, 10, 7.4)
axes[0].imshow(picture, interpolation="bicubic")
axes[0].set_title("the picture")
rounds = len(hierarchy.merges)
for axis, share in zip(axes[1:], (0, 0.2, 0.4, 0.6, 0.8), strict=True):
    done = int(share * rounds)
    of_pixel = regions_after(done)
    axis.imshow(mean_colours(of_pixel))
    axis.set_title(f"after {done} of {rounds} rounds: {len(of_pixel.unique())} regions")
plt.show()

# %% [markdown]
# The box around each region on the way is a proposal. The search pools the regions of several
# notions of similarity, ranks them
# ([`rank_regions`](../data/selective_search/search.py)), filters them and drops those that overlap
# a better one ([`find_proposals`](../data/proposals/propose.py)). Some of the best six fit an
# object and others nothing. That is enough to learn from: each box only has to be recognised.

# %%
from data.proposals.box_filter import BoxFilter
from data.proposals.cache import ProposalCache
from data.proposals.propose import ProposalSettings
from data.proposals.searched_images import SearchedImages

# As in `make demo`: for small pictures of few objects
box_filter = BoxFilter(max_ratio=2, min_extent=0.1, max_extent=0.5, min_side=80)
settings = ProposalSettings(box_filter, search="fast")
unlabelled = SearchedImages(images, ProposalCache(folder / "proposals", settings))

BOXES = 6  # of each picture
for axis, index in zip(panels(1, 2, 8, 4), EXAMPLES, strict=True):
    picture, record = unlabelled.read(index)
    title = f"picture {index}: its best {BOXES} boxes"
    show(axis, picture, title, record.boxes[:BOXES], range(BOXES))
plt.show()

# %% [markdown]
# ## 3. Two views
#
# [`TwoViewDataset`](../data/views.py) calls [`Augment`](../data/transforms.py) twice on a picture
# and its boxes: each view has its own size, may be mirrored, and has its colours changed in one
# way. Nothing is cropped, so box k of view 1 and box k of view 2 show the same thing: one
# *instance*, here with one number and colour. [`instance_ids`](../aligndet/box_domain.py) numbers
# the instances of the whole batch. These numbers take the place of labels.

# %%
from torchvision.transforms.functional import to_pil_image

from aligndet.box_domain import instance_ids
from data.transforms import Augment
from data.views import SampleKey, TwoViewDataset, collate_views

augment = Augment(short_sides=(80, 96), max_side=128, photometric=True)
two_views = TwoViewDataset(unlabelled, augment, max_proposals=BOXES)
keys = [SampleKey(5, "seed 28"), SampleKey(4, "seed 44")]  # the pictures of EXAMPLES
batch = collate_views([two_views[key] for key in keys])
ids = instance_ids(batch[0]["boxes"])


def image_of(view, number=0):
    """A picture of the batch, without its padding."""
    height, width = view["image_sizes"][number].tolist()
    return to_pil_image(view["images"][number, :, :height, :width])


for cell, axis in enumerate(panels(2, 2, 8, 8)):
    number, view = divmod(cell, 2)
    image, boxes = image_of(batch[view], number), batch[view]["boxes"][number]
    title = f"picture {EXAMPLES[number]}, view {view + 1}: {image.width} x {image.height} px"
    show(axis, image, title, boxes, ids[number].tolist())
plt.show()

# %% [markdown]
# ## 4. Which prediction belongs to which instance?
#
# FCOS predicts a box at each point of several grids. [`FCOS.assign`](../models/fcos.py) says which
# box each point has to find ([`assign_points`](../models/assign.py)): points near its centre, on
# the grid that fits its size. [`look_up`](../models/assign.py) turns the box into its instance id.
# Fine-tuning looks up class labels with the same two functions: this is AlignDet's central idea.
# The small dots are points without a box, the background; only the finest grid is drawn.

# %%
from aligndet.config import build_config
from data.normalise import normalise_batch
from models import build_detector
from models.assign import look_up

MODEL = {
    "detector": "fcos",
    "backbone": "resnet18",  # random here; the demo trains it by its image stage first
    "norm": "bn",
    "options": {"channels": 64, "num_convs": 2, "distance_bias": 1.0},
}
config = build_config(
    {
        "output_dir": str(folder / "pretrain"),
        "model": MODEL,
        "data": {"batch_size": 4, "workers": 0},
        "optim": {"name": "adamw", "lr": 0.002, "weight_decay": 0.05, "clip_norm": 1.0},
        "schedule": {"iterations": 60, "decay": "cosine", "warmup_iterations": 0.1},
        "loop": {"log_every": 1, "report": False},
        "box_domain": {"max_proposals": BOXES, "samples": 512, "momentum": 0.9},
    }
)
torch.manual_seed(config.seed)
detector = build_detector(config.model, num_classes=1)
views = normalise_batch(batch)

for view, axis in enumerate(panels(1, 2, 8, 4.8)):
    boxes = views[view]["boxes"]
    with torch.no_grad():
        points, strides = detector.points_for(detector.pyramid(views[view]["images"]))
    matched = detector.assign(points, strides, boxes)  # (2, A) box of each point, or negative
    (of_point, _) = look_up(ids, matched)  # (A,) instance id of each point of picture 0
    image = image_of(batch[view])
    show(axis, image, f"view {view + 1}: points and their instances", boxes[0], ids[0].tolist())
    on_image = (points < torch.tensor(image.size)).all(dim=1)
    background = points[on_image & (of_point < 0) & (strides == strides.min())]
    axis.scatter(*background.T, s=8, color="white", edgecolor="black", linewidth=0.5)
    for instance in ids[0].tolist():
        mine = points[of_point == instance]
        colour = COLOURS[instance]
        axis.scatter(*mine.T, s=110, color=colour, edgecolor="black", zorder=3)
        for x, y in mine.tolist():
            axis.text(x, y, instance, ha="center", va="center", fontsize=8, zorder=4)
plt.show()

# %% [markdown]
# ## 5. Pre-training: instances move apart
#
# [`BoxDomain`](../aligndet/box_domain.py) replaces the classifier by a projector, which makes a
# vector of length 1 for each point. View 1 goes through the *online* branch, which is trained, and
# view 2 through the *target* branch, its moving average; they share a frozen backbone.
# [`FCOSAdapter.forward`](../aligndet/adapters.py) returns the vectors and their ids.
# [`contrastive_loss`](../losses/contrastive.py) pulls those of one id together and pushes all
# others apart, and FCOS's own box losses teach the online branch to find the boxes.
# [`fit`](../train.py) is the one training loop of the project.

# %%
from aligndet.box_domain import BoxDomain
from aligndet.run_directory import RunDirectory
from losses.contrastive import contrastive_statistics, find_pairs
from train import Batches, fit

task = BoxDomain(detector, config.model.detector, config.box_domain)


@torch.no_grad()
def branches():
    """Vectors and ids from view 1 (online) and view 2 (target), as in `BoxDomain.forward`."""
    task.eval()
    view1, view2 = views
    online = task.online(task.backbone(view1["images"]), view1, ids, with_losses=False)
    target = task.target(
        task.backbone(view2["images"]), view2, ids, with_losses=False, online=online
    )
    return online, target


before = branches()
run = RunDirectory(config.output_dir)
run.open(config, state=None)
batches = Batches(two_views, unlabelled.aspect_ratios, collate_views)
fit(task, batches, config, run, resume=None, device=torch.device("cpu"))
after = branches()
for when, (online, target) in (("before", before), ("after", after)):
    pairs = find_pairs(online.embeddings, target.embeddings, online.ids, target.ids)
    statistics = contrastive_statistics(pairs, config.box_domain.temperature)
    same, other = float(statistics["cos_positive"]), float(statistics["cos_negative"])
    print(f"{when}: mean cosine {same:.2f} for the same instance, {other:.2f} for all others")

# %% [markdown]
# Each row is a point of view 1, each column a point of view 2, in the order of their instances.
# White frames hold the pairs of one instance. Before, any two points are about as similar as any
# others. Afterwards the frames stand out: a point finds its instance again in another view, even if
# that is mirrored, larger and almost without colour. What looks alike stays alike: 2, 4, 6
# and 7 each hold a green triangle, 0 and 9 are corners without an object.


# %%
def ordered(branch):
    """Vectors and ids of the points that belong to an instance, in the order of the ids."""
    order = branch.ids.argsort(stable=True)
    order = order[branch.ids[order] >= 0]
    return branch.embeddings[order], branch.ids[order]


axes = panels(1, 2, 10.6, 5)
for axis, title, (online, target) in zip(axes, ("before", "after"), (before, after), strict=True):
    (rows, row_ids), (columns, column_ids) = ordered(online), ordered(target)
    drawn = axis.imshow(rows @ columns.T, cmap="cividis", vmin=-0.2, vmax=1, aspect="auto")
    heights, widths = (i.bincount(minlength=2 * BOXES) for i in (row_ids, column_ids))
    tops, lefts = heights.cumsum(0) - heights - 0.5, widths.cumsum(0) - widths - 0.5
    for frame in zip(lefts, tops, widths, heights, strict=True):
        x, y, width, height = map(float, frame)
        axis.add_patch(plt.Rectangle((x, y), width, height, fill=False, color="white"))
    axis.set_xticks(lefts + widths / 2, range(2 * BOXES))
    axis.set_yticks(tops + heights / 2, range(2 * BOXES))
    axis.tick_params(length=0)
    axis.set(title=f"{title} pre-training", xlabel="instance in view 2 (target branch)")
axes[0].set_ylabel("instance in view 1 (online branch)")
plt.colorbar(drawn, ax=axes, label="cosine")
plt.show()

# %% [markdown]
# The loss falls, but not to 0: even for perfect vectors it has a floor
# ([why](../README.md#a-run-directory)), which is subtracted here.
# [`contrastive_statistics`](../losses/contrastive.py) computes the mean cosines at each step, and
# `fit` writes all of it to `metrics.jsonl`, from which the curves are read.

# %%
from aligndet.run_files import RunFiles

curves = RunFiles.read(run.path)
_, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(*zip(*curves.curve("contrast_minus_floor"), strict=True), color=COLOURS[5])
left.set(title="contrastive loss minus its floor", xlabel="step", ylim=(0, None))
for key, colour, words in (
    ("cos_positive", COLOURS[4], "same instance"),
    ("cos_negative", "black", "all others"),
):
    right.plot(*zip(*curves.curve(key), strict=True), color=colour, label=words)
right.set(title="mean cosine with points of the other view", xlabel="step", ylim=(0, 1))
right.legend(loc="lower left")
plt.show()

# %% [markdown]
# ## 6. Fine-tuning
#
# [`load_pretrained`](../aligndet/transfer.py) starts a detector from the pre-training. Backbone,
# neck, towers and box outputs are loaded; the projector is dropped, and a fresh classifier takes
# its place. Now the labels come in: the same [`fit`](../train.py) trains
# [`FineTuning`](../aligndet/fine_tuning.py), whose losses are the detector's own.
# [`scorer`](../finetune.py) measures AP50, which is 100 if everything is found and nothing else.

# %%
from aligndet import checkpoint
from aligndet.fine_tuning import FineTuning
from aligndet.transfer import load_pretrained, pretrained_file
from data.build import build_train, build_val
from data.views import collate_detection
from finetune import scorer

checkpoint.save(pretrained_file(task.weights(), config.model), run.weights)

split = {"images": str(images), "annotations": str(annotations)}
config = build_config(
    {
        "output_dir": str(folder / "finetune"),
        "model": MODEL,
        # It is tested on what it has learned, to see that it learns; never measure like this.
        "data": {
            "train": split, "val": split, "batch_size": 8, "workers": 0,
            "short_sides": [96], "max_side": 128, "flip": 0.0,
        },
        "optim": {"name": "adamw", "lr": 0.003, "weight_decay": 0.05, "clip_norm": 1.0},
        "schedule": {"iterations": 40, "decay": "cosine", "warmup_iterations": 0.1},
        "loop": {"log_every": 1, "report": False},
    }
)  # fmt: skip
train, val = build_train(config.data), build_val(config.data)
categories = train.coco.categories
torch.manual_seed(config.seed)
detector = build_detector(config.model, len(categories))
manifest = load_pretrained(detector, "fcos", run.weights, categories, config.transfer)
print(*manifest.summary().splitlines()[1:], sep="\n")

run = RunDirectory(config.output_dir)
run.open(config, state=None)
score = scorer(detector, config, val, torch.device("cpu"), run)
before = score().scores
batches = Batches(train, train.coco.aspect_ratios, collate_detection)
fit(FineTuning(detector), batches, config, run, resume=None, device=torch.device("cpu"))
after = score().scores
print(f"AP50 on the same 8 pictures: {before['AP50']:.0f} before, {after['AP50']:.0f} after")

# %% [markdown]
# [`Predictor`](../aligndet/predict.py) loads a fine-tuned detector for single images. This one has
# learned its eight pictures by heart; eight pictures cannot show more, and above all not what
# pre-training brings. For that, `make demo` compares both starts on new pictures, in minutes, and
# [results.md](results.md) has the study.

# %%
from aligndet.predict import Predictor, above
from aligndet.transfer import detector_file

sides = (config.data.eval_short_side, config.data.max_side)
checkpoint.save(detector_file(detector, config.model, categories, sides), run.weights)
predictor = Predictor(run.weights, "cpu")

axes = panels(2, 2, 9, 8.4)
for index, left, right in zip(EXAMPLES, axes[::2], axes[1::2], strict=True):
    picture, record = labelled.read(index)
    names = [categories.names[label] for label in record.labels.tolist()]
    colours = [COLOURS[label] for label in record.labels.tolist()]
    show(left, picture, f"picture {index}: its labels", record.boxes, names, colours)
    found = above(predictor(picture), threshold=0.5)
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    names = [f"{categories.names[k]} {score:.2f}" for k, score in zip(labels, scores, strict=True)]
    colours = [COLOURS[label] for label in labels]
    show(right, picture, "what the detector finds", found["boxes"], names, colours)
plt.show()
