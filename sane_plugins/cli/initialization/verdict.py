"""What `sane-init` says of its result: the scores as a table, and a sentence on what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sane_plugins.cli.console import print_table

if TYPE_CHECKING:
    from sane_plugins.initialize import CandidateScore, Family, Initialization

_RANKED_ROWS = 12


def print_scores(rows: Sequence[CandidateScore]) -> None:
    """Print the accuracies of those that were trained."""
    has_norms = any(row.before_anew is not None for row in rows)
    anew = ("norms anew",) if has_norms else ()
    print_table(
        "accuracy on held-out images of the task; each counts by its best",
        ("initialisation", "before", *anew, "epochs", "after these", ""),
        [
            (
                row.name,
                _percent(row.before),
                *([_percent(row.before_anew)] if has_norms else []),
                f"{row.epochs:.2f}",
                _percent(row.last),
                _mark(row),
            )
            for row in rows
        ],
    )


def print_ranking(rows: Sequence[CandidateScore]) -> None:
    """Print the best of those that were ranked, where none was trained."""
    if rows:
        is_asked = any(row.before is not None for row in rows)
        print_table(
            "training images, each told by a ridge classifier that was fitted to the others",
            (
                "initialisation",
                "right",
                "cross-entropy",
                *(["held-out images right"] if is_asked else []),
                "",
            ),
            [
                (
                    row.name,
                    _percent(row.loo_accuracy),
                    "" if row.loo_loss is None else f"{row.loo_loss:.3f}",
                    *([_percent(row.before)] if is_asked else []),
                    _mark(row),
                )
                for row in rows[:_RANKED_ROWS]
            ],
        )


def verdict(result: Initialization) -> str:
    """Return a sentence on what was chosen, compared with the best of every family trained as long."""
    from sane_plugins.initialize import Family

    if not result.rows:
        return "Generated without comparison: it may be worse than the default initialisation."
    family_names = {
        Family.SANE: "a SANE candidate",
        Family.TRANSFER: "transferred weights",
        Family.DEFAULT: "the default initialisation",
        Family.PROMPT: "the prompts' own weights",
    }
    best = next(row for row in result.rows if row.chosen)
    rivals: dict[Family, CandidateScore] = {}
    for row in result.rows:
        if len(row.curve) == len(best.curve):
            rivals.setdefault(row.kind.family, row)
    label = best.kind.label if result.chosen is Family.DEFAULT else best.name
    comparisons = " and ".join(
        _compared(best, row, family_names[family])
        for family, row in rivals.items()
        if family is not result.chosen
    )
    chosen = f"Chosen: {family_names[result.chosen]} ({label})"
    if best.curve:
        return f"{chosen}{', ' if comparisons else ''}{comparisons}."
    asked = "; held-out images tell how well it starts" if best.before is not None else ""
    how = f"by leave-one-out losses on training images; nothing was trained{asked}"
    return f"{chosen}{', ' if comparisons else ''}{comparisons}, {how}."


def _compared(best: CandidateScore, other: CandidateScore, name: str) -> str:
    """Say by how much the chosen one leads another, in points of accuracy, or that both are about equal."""
    if best.best is not None and other.best is not None:
        lead, error = best.best - other.best, other.error
        known = f" ± {_percent(error)}" if error is not None else ""
        if other.about_equal:
            return f"about equal to {name} ({100 * lead:+.1f}{known} points)"
        return f"{_percent(abs(lead))}{known} points {'ahead of' if lead >= 0 else 'behind'} {name}"
    if other.about_equal:
        return f"about equal to {name}"
    first, second = best.loo_loss, other.loo_loss
    is_ahead = first is None or second is None or first <= second
    return f"{'ahead of' if is_ahead else 'behind'} {name}"


def _mark(row: CandidateScore) -> str:
    return "chosen" if row.chosen else "about equal" if row.about_equal else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
