"""The loss of masked image modelling: how far the reconstruction is off where the image was hidden
(Xie et al., "SimMIM", CVPR 2022, section 3.1).

    l = 1 / |M| * sum_{p in M} |y_p - x_p|, M: the values of the hidden pixels

Legend: N images, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_l1_loss(prediction: Tensor, images: Tensor, hidden: Tensor) -> Tensor:
    """The equation over all images together.

    Args:
        prediction: (N, C, H, W), of any floating-point type; gradients flow into it.
        images: (N, C, H, W), what it should be; constant.
        hidden: (N, H, W) bool, the pixels that count.

    Returns:
        Scalar >= 0, float32 or wider; 0, still attached to the prediction, if nothing is hidden.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        wide = torch.promote_types(prediction.dtype, torch.float32)
        error = (prediction.to(wide) - images.detach().to(wide)).abs()
        total = error.mul(hidden[:, None]).sum()
        return total / (hidden.sum() * images.shape[1]).clamp(min=1)
