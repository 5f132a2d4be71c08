"""Selective search: images in, ranked boxes out.

`search` is the algorithm from end to end; `segmentation` cuts an image into regions,
`region_features` describes them, `grouping` merges them; `colour_spaces` converts the pixels.
"""

from data.selective_search.search import SEARCHES, Strategy, selective_search

__all__ = ["SEARCHES", "Strategy", "selective_search"]
