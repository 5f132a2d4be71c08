"""Which parameters are trained with which weight decay, and at which share of the learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.backbone_base import StagedBackbone

# Not decayed with `decay_norm_and_bias=false`: whatever belongs to a norm, and what ends in one of
# these names, wherever it is.
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
UNDECAYED = ("bias", "scale", "scales", "relative_position_bias_table")


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay_norm_and_bias: bool,
    backbone_lr_scale: float,
    layer_decay: float,
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimiser takes them: `params`, `weight_decay`, and the factor
    `lr_scale` on the learning rate; decayed groups first, each in the order of the model.

    Args:
        model: what is trained.
        weight_decay, decay_norm_and_bias, backbone_lr_scale, layer_decay: see `OptimConfig`.
    """
    factors = layer_factors(model, layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()  # what two modules share is trained once
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            free = not decay_norm_and_bias and (isinstance(module, NORMS) or name in UNDECAYED)
            scale = backbone_lr_scale if "backbone" in prefix.split(".") else 1.0
            key = (0.0 if free else weight_decay, scale * factors.get(parameter, 1.0))
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in sorted(groups.items(), key=lambda group: -group[0][0])
    ]


def layer_factors(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """The factor of each parameter of a backbone: `decay` for its last block, and once more for
    every block below (Bao et al., "BEiT", 2022, appendix)."""
    factors = {}
    for backbone in model.modules():
        if isinstance(backbone, StagedBackbone) and decay != 1.0:
            for height, layer in enumerate(reversed(layers(backbone)), start=1):
                for module in layer:
                    factors.update(dict.fromkeys(module.parameters(), decay**height))
    return factors


def layers(backbone: StagedBackbone) -> list[list[nn.Module]]:
    """The modules of a backbone by depth, from input to output: the stem, then block after block,
    each with the norm that follows it."""
    stem, *stages = backbone.stages
    found = [list(stem)]
    for module in (module for stage in stages for module in stage):
        if isinstance(module, NORMS):
            found[-1].append(module)
        else:
            found += [[block] for block in (module if type(module) is nn.Sequential else [module])]
    return found
