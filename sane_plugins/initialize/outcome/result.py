"""The result of an initialisation, and how it is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sane_plugins.display import ShortRepr, html_table
from sane_plugins.errors import SourceError
from sane_plugins.generation import SamplerError
from sane_plugins.initialize.candidates import Candidate
from sane_plugins.initialize.kinds import CandidateScore, Family, Origin
from sane_plugins.initialize.outcome.benefit import BenefitForecast
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.search import SearchResult
from sane_plugins.initialize.training import set_memory_format
from sane_plugins.weights import WeightGraph, copy_module


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Initialization(ShortRepr):
    """The chosen initial weights, as a graph and in a module, and how they were chosen.

    `rows` start with the chosen one, and then come best first; those with `after` None were not trained to
    the end. `origins` says of each tensor's name where its values come from. `notes` say what a reader of the
    table should know. `interrupted`: the user stopped it, and this was the best so far. `forecasts` are those
    of the families of which one was trained beside a fair rival. `first_task` holds what a pruned network
    needs to have its first task again.
    `sampler_error` says why no more candidates were drawn, where the sampler failed.
    """

    graph: WeightGraph
    module: nn.Module
    chosen: Family
    rows: tuple[CandidateScore, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    origins: Mapping[str, Origin]
    interrupted: bool = False
    first_task: Mapping[str, torch.Tensor] | None = None
    forecasts: Mapping[Family, BenefitForecast] = field(default_factory=dict)
    sampler_error: SamplerError | None = None

    @property
    def forecast(self) -> BenefitForecast | None:
        """Return the forecast for generated weights, those of SANE candidates; None without a fair rival."""
        return self.forecasts.get(Family.SANE)

    def _repr_html_(self) -> str:
        """Return the scores as a table for notebooks: a row per initialisation."""
        columns = ("initialisation", "before", "epochs", "after these", "")
        rows = (
            (x.name, _share(x.before), f"{x.epochs:.2f}", _share(x.last), "chosen" * x.chosen)
            for x in self.rows
        )
        return html_table(repr(self), columns, rows)


def score_rows(
    ranked: Sequence[Candidate], search_result: SearchResult
) -> tuple[CandidateScore, ...]:
    """Return all scores, the chosen one first, those of the race, and then the others by their losses."""
    dropped = sorted(search_result.board.dropped, key=_loss)
    return (*(c.score for c in ranked), *dropped)


def _loss(score: CandidateScore) -> float:
    return float("inf") if score.loo_loss is None else score.loo_loss


def network_graph(problem: InitializationProblem, module: nn.Module) -> WeightGraph:
    """Return the graph of a network that the problem builds, on the CPU."""
    set_memory_format(module, torch.contiguous_format)
    return problem.read(copy_module(module).cpu())


def finite_graph(
    problem: InitializationProblem, module: nn.Module, origins: Mapping[str, Origin]
) -> WeightGraph:
    """Return the graph of a network; raise `SourceError` where weights that we made are not finite."""
    graph = network_graph(problem, module)
    for key, origin in origins.items():
        tensor = graph.tensors.get(key)
        if origin is not Origin.DEFAULT and tensor is not None and not tensor.isfinite().all():
            raise SourceError(
                f"the initial weights, '{key}'",
                "some values are not finite",
                "initial weights are numbers",
                "give prompts and images of moderate size, or the shipped SANE",
            )
    return graph


def _share(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.3f}"
