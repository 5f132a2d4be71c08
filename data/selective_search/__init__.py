"""Selective search: images in, ranked boxes out.

`search` is the algorithm from end to end; `segmentation` cuts an image into regions,
`region_features` describes them, `grouping` merges them, `region_masks` tells their pixels;
`colour_spaces` converts the pixels.
"""

from data.selective_search.region_masks import RegionMasks
from data.selective_search.search import (
    SEARCHES,
    Strategy,
    selective_search,
    selective_search_with_regions,
)

__all__ = [
    "SEARCHES",
    "RegionMasks",
    "Strategy",
    "selective_search",
    "selective_search_with_regions",
]
