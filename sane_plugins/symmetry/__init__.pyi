from .groups import PermutationGroup
from .permutations import (
    align,
    alignment,
    inverse,
    permutation_groups,
    permute,
    random_permutations,
)

__all__ = [
    "PermutationGroup",
    "align",
    "alignment",
    "inverse",
    "permutation_groups",
    "permute",
    "random_permutations",
]
