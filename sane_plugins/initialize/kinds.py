"""What a candidate is: its kind and family, the specification that determines it, and its score."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sane_plugins.initialize.problem import InitializationProblem

Scale = Literal["own", "default"]
Statistics = Literal["measured", "own"]


class Label(str, Enum):
    """A closed set of labels: the value is used in JSON, seed streams and tables, and never parsed."""

    def __str__(self) -> str:
        return str(self.value)

    @property
    def label(self) -> str:
        """Return the text shown to users."""
        return str(self.value)


class Family(Label):
    """The families of initialisations that users choose between."""

    DEFAULT = "default"
    PROMPT = "prompt"
    TRANSFER = "transfer"
    SANE = "sane"


class Kind(Label):
    """How an initialisation is made, the plainest first."""

    DEFAULT = "default"
    DEFAULT_FITTED = "default, classifier fitted"
    STRUCTURED = "structured default"
    PROMPT = "prompt"
    MEAN_OF_PROMPTS = "mean of prompts"
    TRANSFER = "transfer"
    SANE = "sane"

    @property
    def family(self) -> Family:
        """Return the family: the mean of prompts is a prompt, what is drawn without prompts is a default."""
        if self in (Kind.DEFAULT, Kind.DEFAULT_FITTED, Kind.STRUCTURED):
            return Family.DEFAULT
        if self in (Kind.PROMPT, Kind.MEAN_OF_PROMPTS):
            return Family.PROMPT
        return Family(self.value)

    @property
    def is_generated(self) -> bool:
        """Return whether the weights are generated: drawn and decoded by a SANE."""
        return self is Kind.SANE

    @property
    def needs_encoded_prompts(self) -> bool:
        """Return whether it is made from prompts that a SANE encodes, and aligns."""
        return self in (Kind.PROMPT, Kind.MEAN_OF_PROMPTS, Kind.SANE)

    @property
    def is_by_method(self) -> bool:
        """Return whether a method writes its weights into a default network."""
        return self in (Kind.TRANSFER, Kind.STRUCTURED)

    @property
    def plainness(self) -> int:
        """Return its rank among the kinds: 0 is the plainest, which wins ties."""
        return [*Kind].index(self)


class Origin(Label):
    """Where the values of a tensor come from."""

    DEFAULT = "default"
    PROMPT = "prompt"
    MEAN_OF_PROMPTS = "mean of prompts"
    STRUCTURED = "drawn as trained weights look"
    TRANSFERRED = "transferred"
    SANE = "sane"
    MEASURED = "measured on the task"
    FITTED = "fitted to the task"


@dataclass(frozen=True)
class CandidateSpec:
    """The specification of a candidate: together with the seed, it determines the network.

    `number` is that of the draw, or of the prompt. `scale` is that of its hidden layers: as generated, or
    that of the default initialisation. `layers` is the fraction of the layers, from the input on, that are
    generated; the others keep their default. `method` names how a prompt is transferred, or by which method
    a structured default is drawn, which needs no prompt. Running statistics
    of norms are measured on the task, or its own, as the prompt lends them.
    """

    kind: Kind
    number: int = 0
    round: int = 0
    scale: Scale = "own"
    layers: float = 1.0
    method: str = ""
    statistics: Statistics = "measured"

    def name(self, problem: InitializationProblem) -> str:
        """Return the candidate's name in tables; a prompt's is that of its network."""
        number = self.number + 1
        names = {
            Kind.DEFAULT: f"default {number}",
            Kind.DEFAULT_FITTED: f"default {number}, classifier fitted",
            Kind.STRUCTURED: f"{Kind.STRUCTURED} ({self.method})",
            Kind.MEAN_OF_PROMPTS: Kind.MEAN_OF_PROMPTS.label,
            Kind.SANE: f"SANE candidate {number}",
        }
        name = names.get(self.kind) or self._lent_name(problem)
        name += f", round {self.round + 1}" if self.round else ""
        name += ", default scale" if self.scale == "default" else ""
        name += ", its own statistics" if self.statistics == "own" else ""
        return name + (f", first {self.layers:.0%} of the layers" if self.layers < 1 else "")

    def _lent_name(self, problem: InitializationProblem) -> str:
        if self.kind is Kind.TRANSFER:
            return f"transfer from {problem.prompt_networks[self.number].info.name} ({self.method})"
        lenders = [p.source for p in problem.sane_transfer.neighbors(self.number)]
        # A network that a package offers has a better name than its file.
        known = {network.graph.source: network.info.name for network in problem.prompt_networks}
        return f"prompt {' beside '.join(known.get(source, source) for source in lenders)}"


@dataclass(frozen=True, kw_only=True)
class CandidateScore:
    """One initialisation and its scores.

    `loo_loss` and `loo_accuracy` are those of a ridge classifier on its features, each training image
    predicted by the fit to the others: the cross-entropy in nats, and the share told right. All else is
    accuracy on held-out images, and None where it was not measured: `before` is without training,
    `before_anew` the same with the running statistics of norms measured anew, `after` after the last epoch
    if it came so far, and `curve` holds (epochs, accuracy) at each rung that it reached. `seed` orders the
    images of its training. Of those trained as long as the chosen one, `error` is the standard error of the
    difference to its accuracy, and `about_equal` says that they differ by no more than two of it.
    """

    name: str
    kind: Kind
    seed: int
    before: float | None = None
    after: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    chosen: bool = False
    loo_loss: float | None = None
    loo_accuracy: float | None = None
    before_anew: float | None = None
    error: float | None = None
    about_equal: bool = False

    @property
    def best(self) -> float | None:
        """Return the best accuracy that it had by then, before training or at a rung.

        The first steps harm what is good before them, and say little of what longer training makes of it.
        """
        found = [x for x in (self.before, *(share for _, share in self.curve)) if x is not None]
        return max(found, default=None)

    @property
    def last(self) -> float | None:
        """Return the accuracy where its training ended."""
        return self.curve[-1][1] if self.curve else self.before

    @property
    def epochs(self) -> float:
        """Return how long it was trained."""
        return self.curve[-1][0] if self.curve else 0.0
