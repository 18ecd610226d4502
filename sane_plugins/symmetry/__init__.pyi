from .permutation_group import AxisSlice, PermutationGroup
from .permutations import inverse, permutation_groups, permute, random_permutations
from .weight_matching import align, alignment

__all__ = [
    "AxisSlice",
    "PermutationGroup",
    "align",
    "alignment",
    "inverse",
    "permutation_groups",
    "permute",
    "random_permutations",
]
