"""Plain object detection in PyTorch: backbones, pyramid, detectors. Independent of AlignDet."""

from models.backbone import build_backbone
from models.detector import ModelConfig, build_detector

__all__ = ["ModelConfig", "build_backbone", "build_detector"]
