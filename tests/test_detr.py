"""DETR by itself; tests/test_detr_parity.py compares it with another implementation."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from aligndet.compiling import compile_layers
from models import ModelConfig, build_detector
from models.assign import BACKGROUND
from models.detr import DETR, DETRConfig, sides_of
from models.matcher import pad_targets
from tests.helpers.assertions import assert_finite_gradients
from tests.helpers.cuda_runs import on_stand_in, waits_of_a_step
from tests.helpers.labelled_batch import NOTHING, SIZES, TARGETS, K, batch, target
from tests.helpers.small_detr import SMALL, small_detr

LOSSES = {"loss_class", "loss_box", "loss_giou"}


@pytest.mark.parametrize(
    "options",
    [{}, {"pre_norm": True}, {"stride": 16}, {"aux_losses": False}, {"anchors": True}],
)
@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], NOTHING[1]], NOTHING])
def test_every_trained_parameter_gets_a_finite_gradient(options, targets):
    model = small_detr(K, **options).train()
    for index in (0, 1):  # of C2 and C3, which the maps here are not made from
        model.backbone.convolutions[index].requires_grad_(False)
    model.backbone.convolutions[2].requires_grad_(options.get("stride") == 16)
    losses = model(batch(), SIZES, targets)
    assert losses.keys() == LOSSES
    assert all(v.shape == () and v.dtype == torch.float32 for v in losses.values())
    assert (losses["loss_box"] > 0) == (losses["loss_giou"] > 0) == (targets is not NOTHING)
    sum(losses.values()).backward()
    assert_finite_gradients(model)


def test_registered_and_as_large_as_the_papers():
    """41.3 million in table 1 of the paper, without BatchNorm's, which are fixed there."""
    with torch.device("meta"):
        model = build_detector(ModelConfig(detector="detr", frozen_stages=0), 91)
    assert isinstance(model, DETR)
    fixed = {
        id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    }
    number = sum(p.numel() for p in model.parameters() if id(p) not in fixed)
    assert number == pytest.approx(41.3e6, rel=0.01)
    assert model.box_regression[4].out_features == 4


def test_stride_16_reads_c4_and_freezes_what_nothing_reads():
    config = ModelConfig(detector="detr", backbone="resnet18", options={**SMALL, "stride": 16})
    model = build_detector(config, K)
    assert model.input_projection.in_channels == 256
    trained = {
        n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad and "back" in n
    }
    assert trained == {"layer2", "layer3"}
    assert [x.shape[2:] for x in model.pyramid(batch())] == [(8, 10)]


@pytest.mark.parametrize("training", [True, False])
def test_targets_alone_choose_what_forward_returns(training):
    model = small_detr(K).train(training)
    assert isinstance(model(batch(), SIZES, TARGETS), dict)
    assert isinstance(model(batch(), SIZES), list)


def test_image_sizes_may_be_a_tensor_or_pairs_of_numbers():
    model = small_detr(K).eval()
    pairs = [tuple(size) for size in SIZES.tolist()]
    for one, other in zip(model(batch(), SIZES), model(batch(), pairs), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    losses, same = model(batch(), SIZES, TARGETS), model(batch(), pairs, TARGETS)
    assert all(torch.equal(losses[key], same[key]) for key in losses)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("options", [{"stride": 16}, {}, {"anchors": True}])
def test_an_images_detections_do_not_depend_on_its_neighbours(options):
    """Neither on their size, nor on what they show: padding is masked."""
    model = small_detr(K, **options).eval()
    torch.manual_seed(2)
    image, size = torch.randn(1, 3, 96, 64), [(96, 64)]
    (alone,) = model(image, size)
    losses = model(image, size, [target([[5, 5, 60, 80.0]], [1])])
    padded = torch.randn(2, 3, 160, 128)  # noise in the padding too
    padded[0, :, :96, :64] = image[0]
    found = model(padded, [(96, 64), (160, 128)])[0]
    assert len(found["scores"]) == len(alone["scores"]) == 10
    for key in alone:
        torch.testing.assert_close(found[key], alone[key], rtol=0, atol=1e-10)
    goals = [target([[5, 5, 60, 80.0]], [1]), target([[3, 4, 100, 99.0]], [0])]
    output = model.predictions(padded, torch.tensor([96, 160]), torch.tensor([64, 128]))
    sides = sides_of(torch.tensor([[96, 64]]))
    first = output._replace(
        decoded=output.decoded[:, :1], logits=output.logits[:, :1], boxes=output.boxes[:, :1]
    )
    goal = pad_targets(goals[:1], sides)
    same = model.losses(first, goal, model.match(first, goal), sides)
    for key in losses:
        torch.testing.assert_close(same[key], losses[key], rtol=1e-10, atol=0)


def test_detections_by_hand():
    """Classes, order, threshold, clipping, and slivers outside the image."""
    model = small_detr(2, queries=4, score_threshold=0.3)
    logits = torch.zeros(1, 1, 4, 3)
    logits[0, 0] = torch.tensor([[2.0, 0, 0], [0, 3, 5], [0, 4, 0], [9, 0, 0]])
    boxes = torch.tensor(
        [[[[0.5, 0.5, 0.2, 0.4], [0.5] * 4, [0.9, 0.5, 0.4, 0.5], [1, 1, 0.01, 0.01]]]]
    )
    output = model.predictions(torch.zeros(1, 3, 32, 32), *torch.tensor([[32], [32]]))
    output = output._replace(logits=logits, boxes=boxes)
    (found,) = model.detections(output, [(50, 100)])
    assert found["labels"].tolist() == [1, 0]  # the second is background, the last a sliver
    probabilities = logits[0, 0].softmax(1)
    torch.testing.assert_close(
        found["scores"], torch.stack((probabilities[2, 1], probabilities[0, 0]))
    )
    expected = torch.tensor([[70, 12.5, 100, 37.5], [40, 15, 60, 35]])
    torch.testing.assert_close(found["boxes"], expected)
    assert (
        len(
            small_detr(2, queries=4, detections_per_image=1).detections(output, [(50, 100)])[0][
                "boxes"
            ]
        )
        == 1
    )


def test_losses_take_the_assignment_of_another_branch():
    """What pre-training does: match once, by boxes alone, and use it for every term."""
    model = small_detr(1).eval()
    goals = [{**t, "labels": t["labels"] * 0} for t in TARGETS]
    output = model.predictions(batch(), *SIZES.unbind(1))
    assert output.decoded.shape == (2, 2, 10, 32)
    sides = sides_of(SIZES)
    padded = pad_targets(goals, sides)
    matched = model.match(output, padded, with_class=False)
    assert ((matched >= 0).sum(dim=2) == torch.tensor([3, 1])).all()
    terms = model.box_losses(output.boxes, matched, padded, sides)
    losses = model.losses(output, padded, matched, sides)
    assert all(torch.equal(terms[key], losses[key]) for key in terms)
    shifted = model.losses(output, padded, matched.roll(1, 2), sides)
    assert all(shifted[key] != losses[key] for key in losses)
    last = matched[-1:]
    for_all = model.losses(output, padded, last, sides)
    assert for_all == model.losses(output, padded, torch.cat((last, last)), sides)
    assert (model.match(output, pad_targets(NOTHING, sides)) == BACKGROUND).all()


def test_queries_of_another_branch():
    model, other = small_detr(K).eval(), small_detr(K).eval()
    other.query_embedding.weight.data.normal_()
    features, sides = model.backbone(batch()), SIZES.unbind(1)
    ours = model.decode(features, *sides).decoded
    assert ours.shape == (2, 2, 10, 32)
    assert not torch.equal(ours, other.decode(features, *sides).decoded)
    given = other.decode(features, *sides, model.query_embedding.weight)
    assert torch.equal(ours, given.decoded)


def test_half_precision_gives_float32_losses_close_to_those_without():
    model = small_detr(K, "resnet18").eval()
    expected = model(batch(), SIZES, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch(), SIZES, TARGETS)
        found = model(batch(), SIZES)
    for key in LOSSES:
        assert losses[key].dtype == torch.float32
        torch.testing.assert_close(losses[key], expected[key], rtol=0.1, atol=0)
    assert found[0]["boxes"].dtype == found[0]["scores"].dtype == torch.float32
    sum(losses.values()).backward()
    assert_finite_gradients(model)


@pytest.mark.parametrize("anchors", [False, True])
def test_predictions_are_one_graph(anchors):
    torch._dynamo.reset()
    model = small_detr(K, encoder_layers=1, decoder_layers=1, anchors=anchors).eval()
    compiled = copy.deepcopy(model)
    counter = CompileCounter()
    compile_layers(compiled, "model", counter)
    for number, height, width in ((2, 288, 320), (3, 320, 300), (2, 352, 288)):
        images, sizes = torch.randn(number, 3, height, width), [(height, width - 20)] * number
        one, other = model(images, sizes), compiled(images, sizes)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("anchors", [False, True])
def test_a_step_waits_for_a_gpu_twice(anchors):
    """For the check of the targets and for the costs of all layers and images."""
    with on_stand_in() as gpu:
        model = small_detr(K, anchors=anchors).to("cuda").train()
        goals = [{k: v.to("cuda") for k, v in t.items()} for t in TARGETS]
        images, before = batch().to("cuda"), sum(gpu.waits.values())
        losses = model(images, SIZES, goals)
        assert sum(gpu.waits.values()) - before == 2, waits_of_a_step(gpu)
        sum(losses.values()).backward()
        assert sum(gpu.waits.values()) - before == 2
        before = sum(gpu.waits.values())
        model(images, SIZES)
        assert sum(gpu.waits.values()) - before == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 4}, "model.options.stride is 4.*valid: 8, 16, 32"),
        ({"width": 30}, "model.options.width is 30.* multiple of 4 and of model.options.heads, 8"),
        ({"queries": 0}, "model.options.queries is 0; it must be at least 1"),
        ({"dropout": 1.0}, "model.options.dropout is 1.0"),
        ({"background_weight": 0.0}, "model.options.background_weight is 0.0"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as error:
        DETRConfig(**options)
    assert "\n" not in str(error.value)


def test_network_options_are_those_that_change_the_weights():
    changes = {"stride": 16, "width": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    changes |= {"feedforward": 20, "pre_norm": True, "queries": 7, "anchors": True}
    assert set(DETRConfig.NETWORK) == set(changes)
