"""Files as other projects write them, made from torchvision's models with random weights."""

from __future__ import annotations

import argparse
import re

import torch
import torchvision
from torch import nn

from tests.helpers.random_norms import randomise_norm


def source(name):
    """Torchvision's model with random weights and statistics."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise_norm(module)
    return model


def prefixed(weights, prefix, **others):
    """`weights` under a prefix, and other keys."""
    extra = {key.replace("__", "."): torch.zeros(2) for key in others}
    return {f"{prefix}{key}": value for key, value in weights.items()} | extra


def without_fc(weights):
    return {k: v for k, v in weights.items() if not k.startswith(("fc.", "classifier."))}


def zeros(weights):
    """What must not be loaded: another encoder's weights."""
    return {key: torch.zeros_like(value) for key, value in weights.items()}


def moco(weights):
    other = prefixed(zeros(weights), "module.encoder_k.")
    mine = prefixed(weights, "module.encoder_q.", module__queue=0, module__queue_ptr=0)
    return {"epoch": 200, "arch": "resnet50", "state_dict": {**other, **mine}}


def moco_extracted(weights):
    mine = prefixed(weights, "encoder_q.", queue=0, queue_ptr=0)
    return {**prefixed(zeros(weights), "encoder_k."), **mine}


def moco_without_queue(weights):
    return {"state_dict": prefixed(weights, "encoder_q.")}


def moco_v3(weights):
    other = prefixed(zeros(weights), "module.momentum_encoder.")
    return {"state_dict": {**other, **prefixed(weights, "module.base_encoder.")}}


def swav(weights):
    more = {"module__projection_head__0__weight": 0, "module__prototypes__weight": 0}
    return prefixed(without_fc(weights), "module.", **more)


def swav_extracted(weights):
    return prefixed(without_fc(weights), "", projection_head__0__weight=0, prototypes__weight=0)


def dino(weights):
    student = prefixed(zeros(without_fc(weights)), "module.backbone.", module__head__mlp__weight=0)
    teacher = prefixed(without_fc(weights), "module.backbone.", module__head__mlp__weight=0)
    options = argparse.Namespace(arch="resnet50", lr=0.3)
    return {"student": student, "teacher": teacher, "epoch": 3, "args": options}


def dino_single(weights):
    return {"teacher": prefixed(without_fc(weights), "backbone.", head__mlp__weight=0)}


def pixpro(weights):
    backbone = without_fc(weights)
    other = prefixed(zeros(backbone), "module.encoder_k.", module__projector__linear1__weight=0)
    model = {**other, **prefixed(backbone, "module.encoder.")}
    return {"opt": argparse.Namespace(epochs=100), "model": model, "epoch": 100}


def barlow_twins(weights):
    more = {"module__projector__0__weight": 0, "module__bn__running_mean": 0}
    return {"epoch": 9, "model": prefixed(without_fc(weights), "module.backbone.", **more)}


def simsiam(weights):
    more = {"module__encoder__fc__0__weight": 0, "module__predictor__0__weight": 0}
    return {"state_dict": prefixed(without_fc(weights), "module.encoder.", **more)}


def densecl(weights):
    backbone = without_fc(weights)
    other = prefixed(zeros(backbone), "encoder_k.0.", queue=0, queue2=0, encoder_q__1__mlp=0)
    return {"state_dict": {**other, **prefixed(backbone, "encoder_q.0.")}}


def openselfsup(weights):
    content = densecl(weights)
    del content["state_dict"]["queue2"]
    backbone = prefixed(without_fc(weights), "backbone.")  # the same layers under another name
    return {"state_dict": {**content["state_dict"], **backbone}}


def mm(weights):
    more = {"head__fc__weight": 0, "neck__mlp__weight": 0, "data_preprocessor__mean": 0}
    return {"meta": {"epoch": 1}, "state_dict": prefixed(without_fc(weights), "backbone.", **more)}


def data_parallel(weights):
    return prefixed(weights, "module.")


def torchvision_average(weights):
    average = prefixed(weights, "module.", n_averaged=0)
    return {"model": zeros(weights), "model_ema": average, "args": argparse.Namespace(lr=0.5)}


def timm_average(weights):
    return {"state_dict": zeros(weights), "state_dict_ema": weights, "arch": "resnet50"}


def our_detector(weights):
    more = {"neck__lateral__0__weight": 0, "head__cls_logits__bias": 0}
    return {"model": prefixed(without_fc(weights), "backbone.", **more), "stage": "box"}


def our_image_stage(weights):
    return {"model": weights, "stage": "image", "config": {"backbone": "x"}, "classes": []}


def our_run(weights):
    other = prefixed(zeros(without_fc(weights)), "target.backbone.")
    return {"model": {**other, **prefixed(without_fc(weights), "online.backbone.")}, "step": 7}


def detectron2(weights):
    """A ResNet in detectron2's names, without a prefix."""
    result = {}
    for key, value in weights.items():
        key = re.sub(r"^(conv1|bn1)", r"stem.\1", key)
        key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        result[re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)] = value
    return result


def transformers(weights):
    """A ResNet in the names of the transformers library, without a prefix."""
    result, stem, layer = {}, "embedder.embedder.", "encoder.stages.{}.layers.{}."
    for key, value in weights.items():
        key = re.sub(r"^conv1", f"{stem}convolution", key)
        key = re.sub(r"^bn1", f"{stem}normalization", key)
        key = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: layer.format(int(m[1]) - 1, m[2]), key)
        key = re.sub(r"\bconv(\d)", lambda m: f"layer.{int(m[1]) - 1}.convolution", key)
        key = re.sub(r"\bbn(\d)", lambda m: f"layer.{int(m[1]) - 1}.normalization", key)
        key = key.replace("downsample.0", "shortcut.convolution")
        result[key.replace("downsample.1", "shortcut.normalization")] = value
    return result


def numbered(weights):
    """A ResNet as `nn.Sequential(*model.children())` names it."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7, "fc": 9}
    parts = [(key.partition("."), value) for key, value in weights.items()]
    return {f"{numbers[first]}.{rest}": value for (first, _, rest), value in parts}


PREFIXED = {
    "plain": (lambda weights: weights, "torchvision's names (no prefix)"),
    "moco": (moco, "MoCo v1 or v2, its query encoder (module.encoder_q.)"),
    "moco, extracted": (moco_extracted, "MoCo v1 or v2, its query encoder (encoder_q.)"),
    "moco, no queue": (moco_without_queue, "MoCo v1 or v2, its query encoder (encoder_q.)"),
    "moco v3": (moco_v3, "MoCo v3, its base encoder (module.base_encoder.)"),
    "swav": (swav, "SwAV or DeepCluster v2 (module.)"),
    "swav, extracted": (swav_extracted, "SwAV or DeepCluster v2 (no prefix)"),
    "dino": (dino, "DINO (module.backbone.)"),
    "dino, one process": (dino_single, "mmselfsup, mmpretrain, DenseCL or DINO (backbone.)"),
    "barlow twins": (barlow_twins, "Barlow Twins, VICReg or DINO (module.backbone.)"),
    "simsiam": (simsiam, "SimSiam or PixPro, its encoder (module.encoder.)"),
    "pixpro": (pixpro, "PixPro, its online encoder (module.encoder.)"),
    "densecl": (densecl, "DenseCL, its query encoder (encoder_q.0.)"),
    "openselfsup": (openselfsup, "OpenSelfSup or DenseCL, its query encoder (encoder_q.0.)"),
    "mmselfsup": (mm, "mmselfsup, mmpretrain, DenseCL or DINO (backbone.)"),
    "data parallel": (data_parallel, "torchvision's names in DataParallel (module.)"),
    "torchvision's average": (
        torchvision_average,
        "torchvision's names in DataParallel (module.)",
    ),
    "timm's average": (timm_average, "torchvision's names (no prefix)"),
    "our detector": (our_detector, "a detector of this project (backbone.)"),
    "our image stage": (our_image_stage, "torchvision's names (no prefix)"),
    "our last.pt": (our_run, "a run of this project, its online encoder (online.backbone.)"),
}


def torchvision_blocks(model):
    """(stage, index, layers) of each block of torchvision's MobileNetV2; a stage is recognised by
    its number of output channels, which differs from one to the next."""
    stage, index, width = -1, 0, None
    for layer in list(model.features)[1:-1]:
        channels = layer.conv[-1].num_features
        stage, index = (stage, index + 1) if channels == width else (stage + 1, 0)
        width = channels
        yield stage, index, layer.conv


def put(result, name, module):
    result.update({f"{name}.{key}": value for key, value in module.state_dict().items()})


def timm_mobilenet(model):
    result = {"classifier.weight": torch.zeros(2), "classifier.bias": torch.zeros(2)}
    put(result, "conv_stem", model.features[0][0])
    put(result, "bn1", model.features[0][1])
    for stage, index, conv in torchvision_blocks(model):
        *wrapped, last, last_norm = conv
        names = ("conv_dw", "conv_pw") if len(wrapped) == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        layers = [(pair[0], pair[1]) for pair in wrapped] + [(last, last_norm)]
        for number, (name, (layer, norm)) in enumerate(zip(names, layers, strict=True), start=1):
            put(result, f"blocks.{stage}.{index}.{name}", layer)
            put(result, f"blocks.{stage}.{index}.bn{number}", norm)
    put(result, "conv_head", model.features[18][0])
    put(result, "bn2", model.features[18][1])
    return result


def mm_mobilenet(model, prefix="backbone."):
    result = {"head.fc.weight": torch.zeros(2)}
    put(result, f"{prefix}conv1.conv", model.features[0][0])
    put(result, f"{prefix}conv1.bn", model.features[0][1])
    for stage, index, conv in torchvision_blocks(model):
        *wrapped, last, last_norm = conv
        layers = [(pair[0], pair[1]) for pair in wrapped] + [(last, last_norm)]
        for number, (layer, norm) in enumerate(layers):
            put(result, f"{prefix}layer{stage + 1}.{index}.conv.{number}.conv", layer)
            put(result, f"{prefix}layer{stage + 1}.{index}.conv.{number}.bn", norm)
    put(result, f"{prefix}conv2.conv", model.features[18][0])
    put(result, f"{prefix}conv2.bn", model.features[18][1])
    return {"state_dict": result}


RENAMED = {
    "timm": (timm_mobilenet, "timm's MobileNetV2 (no prefix)"),
    "mmpretrain": (mm_mobilenet, "mmpretrain's MobileNetV2 (backbone.)"),
    "mmpretrain, extracted": (
        lambda model: mm_mobilenet(model, prefix=""),
        "mmpretrain's MobileNetV2 (no prefix)",
    ),
}


@torch.no_grad()
def assert_torchvisions_features(backbone, model):
    """Our last map is what torchvision's model pools; in float64, see double_precision."""
    backbone, model = backbone.double(), model.double()
    images, seen = torch.randn(2, 3, 64, 96, dtype=torch.float64), []
    layer = model.features if hasattr(model, "features") else model.layer4
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images)
    handle.remove()
    result = backbone.eval()(images)[-1]
    assert seen[0].std() > 1e-3
    torch.testing.assert_close(result, seen[0], rtol=1e-9, atol=1e-9)
