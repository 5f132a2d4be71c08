"""Data for detection and for AlignDet: COCO datasets, transforms, views, loaders, proposals."""
