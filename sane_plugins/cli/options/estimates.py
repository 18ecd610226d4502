"""What is predicted in tables: what is not told has a mark and any rank, unless guesses are asked for."""

from __future__ import annotations

from collections.abc import Mapping

import click

from sane_plugins import properties
from sane_plugins.cli.console import note

UNLIKE = "?"
force_option = click.option(
    "--force", is_flag=True, help="Tell the value of networks unlike all that a head was fitted on."
)


def to_cell(
    estimate: properties.AnyEstimate | None, force: bool, rank: properties.Rank | None
) -> str:
    """Return an estimate as text; a mark, and a rank if there is one, for an unknown kind."""
    if estimate is None:
        return ""
    is_withheld = properties.is_withheld(estimate, force)
    if is_withheld and rank is None:
        return f"{UNLIKE} cannot tell"
    text = properties.estimate_text(estimate, force=force, rank=rank)
    if is_withheld:
        return f"{UNLIKE} {text}"
    return text if estimate.in_distribution else f"{text} {UNLIKE}"


def tell_caveats(predictions: Mapping[str, Mapping[str, properties.AnyEstimate]]) -> None:
    """Say on stderr of which networks, by source, the estimates are no measurement."""
    sources: dict[str, list[str]] = {}
    for source, estimates in predictions.items():
        for text in dict.fromkeys(x.caveat for x in estimates.values() if x.caveat):
            sources.setdefault(text, []).append(source)
    for text, found in sources.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        note(f"Note: {found[0]}{more}: {text}.")
