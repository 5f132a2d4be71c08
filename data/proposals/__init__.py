"""Proposals: object boxes for images without labels, found once and kept.

The command `python -m data.proposals`: `command` runs it, `options` are its options, `sources`
lists the images and where their boxes come from, `workers` spreads the search over processes,
`journal` keeps finished images so that a killed run can resume, `output` writes the COCO JSON,
`existing` reads it again, `pictures` and `recall` show how good the boxes are, `report` prints it.

For one image: `propose` finds boxes, filters them (`box_filter`) and ranks them.

During training: `searched_images` is a folder of images whose boxes are found when an image is
first read; `cache` keeps them on disk, and `cache_folders`, a command, shows what is kept and
removes what is out of date.
"""
