"""Which branch of a source serves which branch of a target, and where their streams meet again.

The method: docs/explanation/sane.md, section 11.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sane_plugins.grafting.transformers.structure import Branch


@dataclass(frozen=True, kw_only=True)
class BranchPair:
    """The source branch of a target branch, and what its output is multiplied by."""

    source: int
    share: float


def match_branches(
    source: Sequence[Branch], target: Sequence[Branch]
) -> tuple[BranchPair | None, ...]:
    """Return a source branch of the same kind for each target branch, in order.

    Fewer: evenly spread, the first among them. More: each serves a run; together its copies add what it adds.
    """
    pairs: list[BranchPair | None] = [None] * len(target)
    for is_attention in (True, False):
        ours = [i for i, b in enumerate(target) if (b.attention is not None) == is_attention]
        theirs = [i for i, b in enumerate(source) if (b.attention is not None) == is_attention]
        if not theirs:
            continue
        picks = [k * len(theirs) // len(ours) for k in range(len(ours))]
        for place, pick in zip(ours, picks, strict=True):
            pairs[place] = BranchPair(source=theirs[pick], share=1 / picks.count(pick))
    return tuple(pairs)


def meeting_places(pairs: Sequence[BranchPair | None], count: int) -> Mapping[int, int]:
    """Return for target branches the source branch, of `count`, behind which the streams are to be alike.

    Left out are branches of a run of copies but the last, and all where a branch has no partner.
    """
    if any(pair is None for pair in pairs):
        return {}
    sources = [pair.source for pair in pairs if pair is not None]
    ends = [following - 1 for following in sources[1:]] + [count - 1]
    return {
        i: end
        for i, end in enumerate(ends)
        if max(sources[: i + 1]) <= end and all(later > end for later in sources[i + 1 :])
    }
