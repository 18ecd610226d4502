"""Notes on the results of an initialisation."""

from __future__ import annotations

from sane_plugins.generation import SamplerError
from sane_plugins.initialize.benefit import BenefitForecast
from sane_plugins.initialize.budget import Completion
from sane_plugins.initialize.candidates import Candidate, Origin
from sane_plugins.initialize.options import InitializeOptions
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.pruned import PrunedNetwork, sparsity
from sane_plugins.initialize.search import draws_per_round
from sane_plugins.tasks import Task


def result_notes(
    problem: InitializationProblem,
    task: Task,
    best: Candidate,
    forecast: BenefitForecast | None,
    completion: Completion,
) -> tuple[str, ...]:
    """Return notes, each a sentence without its full stop; `task` is the original task before the split."""
    data, options = problem.task, problem.options
    held_out = "held-out training images" if task.x_validation is None else "images to choose by"
    notes = [
        f"scored on {len(data.y_test)} {held_out}, after training on"
        f" {len(data.y_train)} of {len(task.y_train)}; test images were not used"
    ]
    if forecast is not None:
        notes.append(_forecast_note(forecast))
    notes += problem.transfer.notes
    if completion.interrupted:
        notes.append("it was interrupted: this is the best so far")
    elif completion.timed_out:
        notes.append(
            f"the scoring was cut short after the {options.budget:.0f} s that the budget left for it:"
            " a larger one compares more"
        )
    if (count := draws_per_round(problem)) < options.candidates:
        notes.append(
            f"{count} candidates were drawn, not {options.candidates}: the network is large"
        )
    if options.classifier == "fit" and not problem.classifier:
        notes.append("the network does not end in a linear layer, so its classifier was not fitted")
    if problem.pruned is not None:
        notes.append(_pruning_note(problem.pruned, best))
    if not problem.is_fresh:
        notes.append(
            "the default initialisation is the network as given, trained in another order each time"
        )
    if options.include or options.exclude:
        notes.append(_selection_note(best, options))
    return tuple(notes)


def sampler_notes(error: SamplerError | None) -> tuple[str, ...]:
    """Return a note that says why no more candidates were drawn, if the sampler failed."""
    if error is None:
        return ()
    return (f"no more SANE candidates were drawn: of {error.place}, {error.found}",)


def generation_notes(problem: InitializationProblem) -> tuple[str, ...]:
    """Return the notes for one generated network that was not compared with anything."""
    warning = "nothing was scored: it may be worse than the default initialisation"
    return (*problem.transfer.notes, warning)


def _forecast_note(forecast: BenefitForecast) -> str:
    expected = "are expected to" if forecast.helps else "are not expected to"
    return (
        f"generated weights {'may or may not' if forecast.is_close else expected} beat the best default"
        f" initialisation (probability {forecast.probability:.0%})"
    )


def _pruning_note(pruned: PrunedNetwork, best: Candidate) -> str:
    values = sum(x.numel() for x in pruned.tensors.values())
    now = sparsity({k: v for k, v in best.module.state_dict().items() if v.is_floating_point()})
    return (
        f"{sparsity(pruned.tensors):.1%} of the {values} values were zero, {pruned.freed} of which the task"
        f" may use; now {now:.1%} are zero; survivors and whole tensors outside the classifier are frozen"
    )


def _selection_note(best: Candidate, options: InitializeOptions) -> str:
    state = best.module.state_dict()
    selected = [key for key in state if options.selects(key)]
    share = sum(state[key].numel() for key in selected) / sum(x.numel() for x in state.values())
    new = sum(best.origins[key] is not Origin.DEFAULT for key in selected)
    return (
        f"{len(selected)} of {len(state)} tensors ({share:.0%} of the values) were to be initialised,"
        f" and {new} were; all others keep what they had"
    )
