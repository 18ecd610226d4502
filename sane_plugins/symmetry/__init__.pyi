from .canonical import canonical_form, sort_channels
from .canonical_layers import canonical_layers
from .permutation_group import AxisSlice, PermutationGroup
from .permutations import inverse, permutation_groups, permute, random_permutations
from .propagate import propagate_channels
from .weight_matching import align, alignment

__all__ = [
    "AxisSlice",
    "PermutationGroup",
    "align",
    "alignment",
    "canonical_form",
    "canonical_layers",
    "inverse",
    "permutation_groups",
    "permute",
    "propagate_channels",
    "random_permutations",
    "sort_channels",
]
