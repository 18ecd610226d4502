"""The plan of an initialisation: how much is drawn, ranked and trained, decided once, before the work.

A few passes of the default network are timed, without what other programs made them wait. Each rung of a
ladder halves the work, and the first rung that fits into the budget is taken: powers of two, so that what is
timed changes the result only where it moves the rung, which is recorded and can be asked for.
The method: docs/explanation/sane.md, section 6.8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from time import perf_counter, thread_time

import torch
from torch.nn.functional import cross_entropy

from sane_plugins.errors import visible
from sane_plugins.grafting import norms_in_training_mode
from sane_plugins.initialize.kinds import Kind
from sane_plugins.initialize.options import MOST
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.training import SCORING_NORM_BATCH_SIZE, SCORING_NORM_BATCHES
from sane_plugins.runtime import seeded
from sane_plugins.tasks import logits

LEAST_STEPS = 4  # of training: fewer tell nothing
_RUNG_FRACTIONS = (0.25, 0.5, 1.0)
FOLDS, FOLD_EPOCHS = 3, 2  # of the forecast
_UNMEASURED_SECONDS = 600  # without a budget, at the speed of two cores
_UNMEASURED_FLOPS_PER_SECOND = 3e10
_PART_PLANNED = 0.8  # of the budget: what is measured in a few passes is not exact
_SECONDS_PER_TOKEN = 2e-4  # to encode or decode, on two cores
_SANE_PART = 0.3  # of the budget, at most, to encode the prompts and decode one candidate
_SCOUTED = 8  # prompts that are grafted to find the best, at most
_LENDERS = 2  # of these, that are fitted to
_ONE_PROMPT = 3  # from this rung on one is fitted to, and of many only some are grafted
# What transfers cost, in images that the network is run on: a graft, and feature regression.
_SCOUT_IMAGES, _METHOD_IMAGES = 150, 3_500
# Values of a network of which few copies are kept, and fewest: one in training takes four times its size.
_LARGE, _LARGEST = 5_000_000, 20_000_000
_CALIBRATION_FLOPS = 1e10
_CALLS_TIMED = 2
# Waiting that is taken for other programs' work; what waits longer is a machine that lends us little.
_MOST_WAITING = 8
_LOW = 5  # from this rung on all is done with the fewest images
_FULL_FIT = 8192  # images over the last fit, halved by each rung


@dataclass(frozen=True)
class Speed:
    """Seconds to run one image through the network, and of a step of training."""

    image: float
    step: float

    @classmethod
    def assumed(cls, problem: InitializationProblem) -> Speed:
        """Return that of two cores, from the number of operations, the same on every machine."""
        image = problem.flops / _UNMEASURED_FLOPS_PER_SECOND
        return cls(image, 3 * image * problem.options.train.batch)

    @classmethod
    def measured(cls, problem: InitializationProblem) -> Speed:
        """Time a few passes of a default network on this machine, as if it had nothing else to do."""
        options, task = problem.options, problem.task
        with seeded(torch.Generator().manual_seed(options.seed)):
            module = problem.build_network().to(options.device)
        affordable = int(_CALIBRATION_FLOPS / (3 * problem.flops))
        count = max(2, min(options.train.batch, affordable, len(task.y_train)))
        x, y = task.x_train[:count], task.y_train[:count]
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, 0.0)

        def train() -> None:
            module.train()
            with seeded(torch.Generator().manual_seed(0)):  # dropout
                cross_entropy(logits(module, x), y).backward()

        def run() -> None:
            with torch.no_grad(), norms_in_training_mode(module):
                logits(module, x)

        step = _seconds(train, options.device) / count * options.train.batch
        step += _seconds(lambda: optimizer.step(), options.device)
        return cls(_seconds(run, options.device) / count, step)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done at a rung: counts of candidates, images and steps; `seconds` is what it may take.

    `draws` SANE candidates are decoded (0: none) and as many defaults with a fitted classifier ranked,
    beside `defaults` as they are, `prompts` as they are, and transfers: of `networks` prompts by the first
    method, where there are several to choose from, and of the best (`lenders`) by `methods` others. All
    are ranked on `ranking_images` training images. Of each kind, `keep` are kept; `finalists` of all are
    trained for `steps` steps (0: none) of `batch` images and asked about `held_out` images. `fold_orders`
    is how often the forecast trains in folds. What is written has its norms and classifier from
    `last_images`.
    """

    rung: int
    draws: int
    defaults: int
    prompts: int
    networks: int
    methods: int
    scouts: bool
    ranking_images: int
    keep: int
    finalists: int
    steps: int
    batch: int
    held_out: int
    fold_orders: int
    last_images: int
    seconds: float = 0.0

    @property
    def scouted(self) -> int:
        """Return how many prompts are grafted to find the best."""
        return self.networks * self.scouts

    @property
    def lenders(self) -> int:
        """Return how many prompts are fitted to: how good a graft is does not tell how good a fit will be."""
        return min(self.networks, _LENDERS if self.rung < _ONE_PROMPT else 1)

    def limit(self, kind: Kind) -> int:
        """Return how many candidates of a kind are kept."""
        return {Kind.DEFAULT: self.defaults, Kind.PROMPT: 1, Kind.MEAN_OF_PROMPTS: 1}.get(
            kind, self.keep
        )


def make_plan(problem: InitializationProblem, budget: float | None, trains: bool = True) -> Plan:
    """Measure the speed of this machine, and choose the first rung that fits into so many seconds.

    Where a rung is asked for, that one is taken; without a budget, nothing is measured.
    """
    speed = Speed.assumed(problem) if budget is None else Speed.measured(problem)
    available = _UNMEASURED_SECONDS if budget is None else _PART_PLANNED * budget
    asked = problem.options.rung
    rungs = range(MOST["rung"] + 1) if asked is None else [asked]
    plans = [_plan_at(rung, problem, speed, available, trains) for rung in rungs]
    fitting = [plan for plan in plans if plan.seconds <= available]
    if asked is not None or fitting:
        return (fitting or plans)[0]
    # Not even the least training fits: what there is time for is the ranking.
    return _plan_at(MOST["rung"], problem, speed, available, trains=False)


def describe(plan: Plan, problem: InitializationProblem) -> str:
    """Return a sentence, without its full stop, that says what will be done."""
    task = problem.task
    names = [network.info.name for network in problem.prompt_networks[: plan.networks]]
    transfers = f" and transfers from {visible(', '.join(names), 200)}" if names else ""
    epochs = plan.steps * plan.batch / len(task.y_train)
    training = (
        f"will train {plan.finalists} candidates for up to {epochs:.2g} epochs"
        f" ({plan.steps} steps of {plan.batch}) on {len(task.y_train):,} images"
        if plan.steps
        else "none will be trained"
    )
    sane = (
        f"{plan.draws} SANE candidates, {plan.prompts} prompts as they are, " if plan.draws else ""
    )
    work = "all of the work" if not plan.rung else f"1/{2**plan.rung} of the work"
    return (
        f"will rank {sane}{plan.defaults + max(1, plan.draws)} defaults{transfers}"
        f" on {plan.ranking_images:,} images; {training}; about {plan.seconds:.0f} s"
        f" (rung {plan.rung}: {work})"
    )


def _plan_at(
    rung: int, problem: InitializationProblem, speed: Speed, available: float, trains: bool = True
) -> Plan:
    options, task = problem.options, problem.task
    epoch_steps = ceil(len(task.y_train) / options.train.batch)
    steps = max(min(LEAST_STEPS, epoch_steps), (options.epochs * epoch_steps) >> rung)
    keep, least = max(1, options.keep >> rung), 128 if rung >= _LOW else 256
    is_large, is_low = problem.graph.size > _LARGE, rung >= _LOW
    networks = min(_SCOUTED, len(problem.prompt_networks)) if problem.transfer_names else 0
    others = max(0, len(problem.transfer_names) - 1)
    has_sane = _affords_sane(problem, available)
    scouted = min(networks, max(_LENDERS if rung < _ONE_PROMPT else 1, networks >> rung))
    plan = Plan(
        rung=rung,
        draws=max(1, options.candidates >> rung) if has_sane else 0,
        defaults=min(options.default_count, max(1, options.default_count >> rung)),
        prompts=max(1, len(problem.prompts) >> rung) if has_sane and options.default_count else 0,
        networks=scouted,
        methods=min(others, max(1, others - max(0, rung - 1))),
        scouts=rung < _ONE_PROMPT or not others or scouted > 1,
        ranking_images=min(len(task.y_train), max(least, 1024 >> rung)),
        keep=1 if is_large else keep,
        finalists=_finalists(problem.graph.size, rung),
        steps=steps if trains else 0,
        batch=max(min(16, options.train.batch), options.train.batch // 2)
        if is_low
        else options.train.batch,
        held_out=min(len(task.y_test), max(least, 2048 >> rung)),
        fold_orders=max(0, 2 - rung) if trains and not is_large else 0,
        last_images=max(512, _FULL_FIT >> rung),
    )
    return _with_seconds(plan, problem, speed)


def rungs_of(steps: int) -> list[int]:
    """Return the steps of training after which finalists are compared; too few tell nothing."""
    rungs = {ceil(steps * share) for share in _RUNG_FRACTIONS}
    return sorted({rung for rung in rungs if rung >= LEAST_STEPS} | {steps})


def _finalists(values: int, rung: int) -> int:
    if values > _LARGEST:
        return 3
    return 4 if values > _LARGE else max(4, 16 >> rung)


def _affords_sane(problem: InitializationProblem, available: float) -> bool:
    """Return whether there are prompts that can be encoded, and a candidate decoded, in time."""
    if not problem.prompts:
        return False
    seconds = _SECONDS_PER_TOKEN * sum(problem.tokens)
    return not problem.prompt_networks or seconds <= _SANE_PART * available


def _with_seconds(plan: Plan, problem: InitializationProblem, speed: Speed) -> Plan:
    """Return the plan with the seconds that it may take."""
    options, task = problem.options, problem.task
    prompt_tokens, tokens = problem.tokens
    rounds = options.search_rounds
    sane = (prompt_tokens + rounds * plan.draws * tokens) * bool(plan.draws) * _SECONDS_PER_TOKEN
    methods = plan.methods * plan.lenders
    tried = problem.transfer_names[1 : 1 + plan.methods]  # of which variants of one fit cost one
    fits = len({problem.first_of_base(name) for name in tried}) * plan.lenders
    transfers = plan.scouted * _SCOUT_IMAGES + fits * _METHOD_IMAGES
    ranked = (
        plan.defaults * (not problem.fits_classifier)
        + 2 * rounds * plan.draws
        + plan.prompts
        + 2 * (plan.scouted + methods)
    )
    ranked += (
        1 + len(problem.promptless_names) + 2 * (1 + (plan.rung < 2)) * bool(plan.draws)
    )  # variants
    epoch_steps = ceil(len(task.y_train) / options.train.batch)
    rungs = len(rungs_of(plan.steps))
    scored = plan.held_out + SCORING_NORM_BATCHES * SCORING_NORM_BATCH_SIZE
    steps = plan.steps * plan.batch / options.train.batch * (1.0 if rungs == 1 else 0.6)
    images_asked = plan.held_out + (1 if rungs == 1 else 2) * scored
    trainings = plan.finalists * (steps * speed.step + images_asked * speed.image)
    families = bool(plan.draws) + bool(plan.networks)  # each beside the best default
    folds = 2 * families * FOLDS * plan.fold_orders * FOLD_EPOCHS * epoch_steps * speed.step
    fitted, norm_images = options.fit_images, options.norm_batches * options.norm_batch
    last = sum(min(x, plan.last_images, len(task.y_train)) for x in (fitted, norm_images))
    images = ranked * plan.ranking_images + transfers + last + 2 * plan.held_out
    seconds = sane + images * speed.image + (trainings + folds if plan.steps else 0)
    return Plan(**{**vars(plan), "seconds": seconds})


def _seconds(call: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes on an idle machine: the least of some, after one to warm up.

    On a processor it is the time that this thread ran, which has its part in all parallel work: what other
    programs make it wait is not counted.
    """
    call()
    _wait(device)
    seconds = []
    for _ in range(_CALLS_TIMED):
        start, running = perf_counter(), thread_time()
        call()
        _wait(device)
        passed, ran = perf_counter() - start, thread_time() - running
        is_ours = torch.device(device).type == "cpu"
        seconds.append(max(ran, passed / _MOST_WAITING) if is_ours else passed)
    return min(seconds)


def _wait(device: str) -> None:
    """Wait for a card, which works on while the program goes on."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        torch.cuda.synchronize(device)
