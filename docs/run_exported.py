"""Objects in a photograph, found by an exported detector:

    python run_exported.py detector.onnx photo.jpg

Needs numpy, pillow and onnxruntime, and nothing of the project that exported it.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

LOWEST_SCORE = 0.3  # of what is printed

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["aligndet"])

photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
scale = min(about["short_side"] / min(photo.size), about["max_side"] / max(photo.size))
width, height = (max(1, round(side * scale)) for side in photo.size)
small = photo.resize((width, height), Image.Resampling.BILINEAR)

images = np.asarray(small).transpose(2, 0, 1)[None]  # (1, 3, height, width) uint8
inputs = {"images": images, "image_sizes": np.array([[height, width]], dtype=np.int64)}
boxes, scores, labels, *_ = session.run(None, inputs)

boxes *= np.array([photo.width / width, photo.height / height] * 2, dtype=np.float32)
for box, score, label in zip(boxes, scores, labels, strict=True):
    if score >= LOWEST_SCORE:
        print(about["classes"][label], f"{score:.3f}", *(f"{corner:.1f}" for corner in box))
