"""What a reader of an initialisation's table should know."""

from __future__ import annotations

from collections.abc import Iterator

from sane_plugins.initialize.benefit import BenefitForecast
from sane_plugins.initialize.budget import Budget
from sane_plugins.initialize.candidates import DEFAULT, CandidateBuilder
from sane_plugins.initialize.options import Candidate, InitializeOptions
from sane_plugins.initialize.pruned import PrunedNetwork, sparsity
from sane_plugins.initialize.search import drawn_at_once
from sane_plugins.tasks import Task


def remarks(
    bench: CandidateBuilder,
    task: Task,
    fresh: bool,
    clock: Budget,
    best: Candidate,
    expected: BenefitForecast | None,
) -> Iterator[str]:
    """Yield one sentence each, without its full stop."""
    data, options = bench.task, bench.options
    yield (
        f"scored on {len(data.y_test)} held-out training images, after training on"
        f" {len(data.y_train)} of {len(task.y_train)}; test images were not used"
    )
    if expected is not None:
        verb = "are expected to" if expected.helps else "are not expected to"
        yield (
            f"generated weights {'may or may not' if expected.is_close else verb} beat the best default"
            f" initialisation (probability {expected.probability:.0%})"
        )
    yield from bench.transfer.notes
    if clock.interrupted:
        yield "it was interrupted: this is the best so far"
    elif clock.cut:
        yield (
            f"the scoring was cut short after the {options.budget:.0f} s that the budget left for it:"
            " a larger one compares more"
        )
    if (count := drawn_at_once(bench)) < options.candidates:
        yield f"{count} candidates were drawn, not {options.candidates}: the network is large"
    if options.classifier == "fit" and not bench.classifier:
        yield "the network does not end in a linear layer, so its classifier was not fitted"
    if bench.pruned is not None:
        yield _freed(bench.pruned, best)
    if not fresh:
        yield "the default initialisation is the network as given, trained in another order each time"
    if options.include or options.exclude:
        yield _partial(best, options)


def _freed(found: PrunedNetwork, best: Candidate) -> str:
    values = sum(x.numel() for x in found.tensors.values())
    now = sparsity({k: v for k, v in best.module.state_dict().items() if v.is_floating_point()})
    return (
        f"{sparsity(found.tensors):.1%} of the {values} values were zero, {found.freed} of which the task"
        f" may use; now {now:.1%} are zero; survivors and whole tensors outside the classifier are frozen"
    )


def _partial(best: Candidate, options: InitializeOptions) -> str:
    state = best.module.state_dict()
    wanted = [key for key in state if options.selects(key)]
    share = sum(state[key].numel() for key in wanted) / sum(x.numel() for x in state.values())
    new = sum(best.origins[key] != DEFAULT for key in wanted)
    return (
        f"{len(wanted)} of {len(state)} tensors ({share:.0%} of the values) were to be initialised,"
        f" and {new} were; all others keep what they had"
    )
