"""Notes on the results of an initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

from sane_plugins.display import percent_text
from sane_plugins.generation import SamplerError
from sane_plugins.initialize.budget import PATIENCE, Completion
from sane_plugins.initialize.candidates import BuiltNetwork
from sane_plugins.initialize.choice import is_clearly_less
from sane_plugins.initialize.kinds import CandidateScore, Family, Kind, Origin
from sane_plugins.initialize.options import InitializeOptions
from sane_plugins.initialize.outcome.benefit import FORECAST_FAMILIES, BenefitForecast
from sane_plugins.initialize.plan import Plan
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.pruned import PrunedNetwork, sparsity
from sane_plugins.tasks import Task
from sane_plugins.weights import names_in_use

_FEW_IMAGES = 100  # to choose by
_NAMES = {Family.SANE: "generated", Family.TRANSFER: "transferred"}


def result_notes(
    problem: InitializationProblem,
    asked: InitializeOptions,
    task: Task,
    best: BuiltNetwork,
    plan: Plan,
    forecasts: Mapping[Family, BenefitForecast],
    completion: Completion,
    rows: Sequence[CandidateScore],
) -> tuple[str, ...]:
    """Return notes, each a sentence without its full stop.

    `asked` are the options before the plan, `task` is the original task before the split.
    """
    data, trained = problem.task, [row for row in rows if row.curve]
    unused = "; test images were not used" if task.has_test_images else ""
    if trained:
        epochs = max(row.epochs for row in trained)
        kind = "held-out training images" if task.x_validation is None else "images to choose by"
        notes = [
            f"scored on {min(plan.held_out, len(data.y_test))} {kind}, after up to"
            f" {epochs:.2g} epochs of training on {len(data.y_train)} of {len(task.y_train)}{unused}"
        ]
    else:
        notes = [
            f"nothing was trained: it is ranked by the leave-one-out losses of {plan.ranking_images} training"
            f" images alone{unused}"
        ]
    if trained and (held_out := min(plan.held_out, len(data.y_test))) < _FEW_IMAGES:
        notes.append(
            f"{held_out} images tell accuracies to within {100 / sqrt(held_out):.0f} points only: give more"
            " images, or --validation, to tell candidates apart"
        )
    notes += [_forecast_note(f, forecasts[f]) for f in FORECAST_FAMILIES if f in forecasts]
    notes += harm_note(rows, min(plan.held_out, len(data.y_test)), asked.train.lr)
    notes += (*best.notes, *_transfer_notes(rows))
    notes += problem.transfer.notes if problem.transfer is not None else ()
    notes += _budget_notes(problem, asked, plan, completion)
    if asked.classifier == "fit" and not problem.classifier:
        notes.append("the network does not end in a linear layer, so its classifier was not fitted")
    if problem.pruned is not None:
        notes.append(_pruning_note(problem.pruned, best))
    if not problem.is_fresh:
        notes.append(
            "the default initialisation is the network as given, trained in another order each time"
        )
    if asked.include or asked.exclude:
        notes.append(_selection_note(best, asked))
    return tuple(notes)


def ranking_notes(
    problem: InitializationProblem, plan: Plan, completion: Completion
) -> tuple[str, ...]:
    """Return the notes on a network that was chosen without training."""
    note = (
        f"nothing was trained: it was chosen by the leave-one-out losses of {plan.ranking_images} training"
        " images, and against the default by held-out images"
    )
    return (note, *_budget_notes(problem, problem.options, plan, completion))


def harm_note(rows: Sequence[CandidateScore], images: int, lr: float) -> tuple[str, ...]:
    """Warn where training took back what the chosen weights begin with."""
    chosen = next((row for row in rows if row.chosen and row.curve), None)
    if chosen is None or chosen.before is None or chosen.last is None:
        return ()
    if not is_clearly_less(chosen.last, chosen.before, images):
        return ()
    return (
        f"training took it from {100 * chosen.before:.1f} to {100 * chosen.last:.1f} within"
        f" {chosen.epochs:.2g} epochs at the learning rate {lr:g}: train it at a lower one, with a warm-up",
    )


def _transfer_notes(rows: Sequence[CandidateScore]) -> tuple[str, ...]:
    transfers = [row for row in rows if row.kind is Kind.TRANSFER]
    if transfers and not any(row.curve or row.chosen for row in transfers):
        return (
            "no transfer beat the best default by two standard errors before training, so none was trained",
        )
    return ()


def _budget_notes(
    problem: InitializationProblem, asked: InitializeOptions, plan: Plan, completion: Completion
) -> list[str]:
    notes = []
    if completion.interrupted:
        notes.append("it was interrupted: this is the best so far")
    elif completion.timed_out:
        notes.append(
            f"the work was cut short when it had taken {PATIENCE:.0f} times the budget of"
            f" {asked.budget or 0:.0f} s (other programs may have kept the machine busy): a larger one, or"
            " a larger --rung, ends by itself"
        )
    if plan.rung and asked.rung is None:
        notes.append(
            f"the budget allowed 1/{2**plan.rung} of the work, as measured before it: --rung {plan.rung} does"
            " the same whatever the machine does, and a larger budget more"
        )
    if problem.prompts and not plan.draws:
        notes.append(
            "no SANE candidate was drawn: to encode the prompts and decode one takes more than the budget has"
            " for it"
        )
    elif problem.transfer is not None and plan.draws < asked.candidates:
        notes.append(f"{plan.draws} of {asked.candidates} SANE candidates were drawn")
    return notes


def sampler_notes(error: SamplerError | None) -> tuple[str, ...]:
    """Return a note that says why no more candidates were drawn, if the sampler failed."""
    if error is None:
        return ()
    return (f"no more SANE candidates were drawn: of {error.place}, {error.found}",)


def generation_notes(problem: InitializationProblem) -> tuple[str, ...]:
    """Return the notes for one generated network that was not compared with anything."""
    warning = "nothing was scored: it may be worse than the default initialisation"
    return (*problem.sane_transfer.notes, warning)


def _forecast_note(family: Family, forecast: BenefitForecast) -> str:
    expected = "are expected to" if forecast.helps else "are not expected to"
    return (
        f"{_NAMES[family]} weights {'may or may not' if forecast.is_close else expected} beat the best"
        f" default initialisation (probability {percent_text(forecast.probability)})"
    )


def _pruning_note(pruned: PrunedNetwork, best: BuiltNetwork) -> str:
    values = sum(x.numel() for x in pruned.tensors.values())
    now = sparsity({k: v for k, v in best.module.state_dict().items() if v.is_floating_point()})
    return (
        f"{sparsity(pruned.tensors):.1%} of the {values} values were zero, {pruned.freed} of which the task"
        f" may use; now {now:.1%} are zero; survivors and whole tensors outside the classifier are frozen"
    )


def _selection_note(best: BuiltNetwork, options: InitializeOptions) -> str:
    state, in_use = best.module.state_dict(), names_in_use(best.module)
    stored = [key for key in state if options.selects(in_use.get(key, key))]
    selected = {in_use.get(key, key) for key in stored}
    share = sum(state[key].numel() for key in stored) / sum(x.numel() for x in state.values())
    new = sum(best.origins[key] is not Origin.DEFAULT for key in selected)
    return (
        f"{len(selected)} of {len(best.origins)} tensors ({share:.0%} of the values) were to be initialised,"
        f" and {new} were; all others keep what they had"
    )
