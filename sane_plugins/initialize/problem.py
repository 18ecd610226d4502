"""The problem of an initialisation: the set-up that all candidates share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.errors import UsageError
from sane_plugins.generation import (
    ConditionedSampler,
    Sampler,
    SamplingContext,
    Transfer,
    align_to_target,
    bind_sampler,
    connected_like,
    in_one_order,
    plan_transfer,
)
from sane_plugins.grafting import find_classifier
from sane_plugins.initialize.options import InitializeOptions
from sane_plugins.initialize.pruned import PrunedNetwork, fresh_copies
from sane_plugins.progress import Report, silent
from sane_plugins.runtime import random_stream, seeded
from sane_plugins.tasks import Task, describe, forward_flops, require_fit
from sane_plugins.weights import WeightGraph, copy_module, from_module

_EPOCH_FLOPS = 3e11  # about ten seconds on two cores
_FORWARDS_PER_TRAINING_STEP = 3  # the cost of a training step, in forward passes
_MIN_IMAGES, _MAX_IMAGES = 256, 10_000


@dataclass(frozen=True, kw_only=True, eq=False)
class InitializationProblem:
    """A network, a task and prompts, prepared for generating candidates.

    `build_network` returns the network at its default initialisation, another draw each time if `is_fresh`;
    `graph` is one of them, read. `classifier` holds the keys of its classifier's tensors (empty: it is not a
    linear layer). `task` has training images to train on and, as its test images, training images to choose
    by. `flops` counts the operations of one image's forward pass. `sampler` draws near `transfer.prompts`.
    """

    options: InitializeOptions
    build_network: Callable[[], nn.Module]
    is_fresh: bool
    graph: WeightGraph
    classifier: frozenset[str]
    task: Task
    flops: int
    transfer: Transfer
    sampler: Sampler
    pruned: PrunedNetwork | None = None

    @property
    def fits_classifier(self) -> bool:
        """Return whether candidates get a fitted classifier."""
        return self.options.classifier == "fit" and bool(self.classifier)

    def read(self, module: nn.Module) -> WeightGraph:
        """Return the graph of a network that `build_network` built, without tracing its layers again."""
        tensors = module.state_dict()
        if tensors.keys() != self.graph.tensors.keys():  # folded by pruning or a parametrisation
            return from_module(module)
        return replace(self.graph, tensors=tensors)

    def with_prompts(
        self, prompts: Sequence[WeightGraph], report: Report = silent
    ) -> InitializationProblem:
        """Return the same problem with other prompts, which have the target's shapes."""
        rng = random_stream(self.options.seed, "align few")
        transfer = plan_transfer(
            prompts, self.graph, self.classifier, self.transfer.sane, rng, report
        )
        sampler = _bind_sampler(self.options.sampler, transfer, self.task)
        return replace(self, transfer=transfer, sampler=sampler)


def prepare(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions,
    report: Report = silent,
) -> InitializationProblem:
    """Build the target once, split the task's training images, and match the prompts to the target.

    Raises `TaskError` where images or classes do not fit the network, `UsageError` without prompts, or where
    no tensor's name matches.
    """
    build_network, is_fresh = _network_builder(target)
    with seeded(random_stream(options.seed, "first")):
        module = build_network()
    require_fit(module, task)
    _require_match(module, options)
    flops = forward_flops(module, task.x_train[:1])
    split_task = split_images(task, flops, options)
    graph = from_module(module)
    classifier = _classifier_keys(module, graph, task)
    rng = random_stream(options.seed, "align")
    pruned = None
    prompts = [connected_like(prompt, graph, classifier) for prompt in prompts]
    if options.pruned:
        pruned = PrunedNetwork.of(graph, classifier)
        build_network, is_fresh = fresh_copies(module), True
        prompts = [align_to_target(prompt, graph, rng) for prompt in prompts]
    else:
        prompts = [in_one_order(prompt) for prompt in prompts]
    transfer = plan_transfer(prompts, graph, classifier, sane, rng, report)
    return InitializationProblem(
        options=options,
        build_network=build_network,
        is_fresh=is_fresh,
        graph=graph,
        classifier=classifier,
        task=split_task,
        flops=flops,
        transfer=transfer,
        sampler=_bind_sampler(options.sampler, transfer, split_task),
        pruned=pruned,
    )


def split_images(task: Task, flops: int, options: InitializeOptions) -> Task:
    """Split the training images into some to train on and some to choose by, which become the test images.

    Of a task that has images to choose by, all training images are trained on. Neither part is larger than
    an epoch can afford, given the `flops` of one image's forward pass.
    """
    rng = random_stream(options.seed, "data")
    affordable = int(_EPOCH_FLOPS / (_FORWARDS_PER_TRAINING_STEP * flops))
    max_images = min(max(affordable, _MIN_IMAGES), _MAX_IMAGES)
    held_out = min(options.validation_images, max_images)
    if task.x_validation is None:
        split_task = task.held_out(min(options.validation, held_out / len(task.y_train)), rng)
    else:
        split_task = task.with_validation_for_test(held_out, rng)
    return split_task.subset(options.images or max_images, rng).to(options.device)


def _network_builder(
    target: nn.Module | Callable[[], nn.Module],
) -> tuple[Callable[[], nn.Module], bool]:
    """Return a function that builds the network, and whether each call draws fresh weights."""
    if isinstance(target, nn.Module):
        return (lambda: copy_module(target)), False
    return target, True


def _require_match(module: nn.Module, options: InitializeOptions) -> None:
    if not any(map(options.selects, module.state_dict())):
        names = ", ".join([*module.state_dict()][:4])
        raise UsageError(
            "--include, --exclude",
            "no tensor is left to initialise",
            "some name must match",
            f"the network has {names}, and so on",
        )


def _classifier_keys(module: nn.Module, graph: WeightGraph, task: Task) -> frozenset[str]:
    layer = find_classifier(module, task.x_train[:2])
    names = {name for name, submodule in module.named_modules() if submodule is layer}
    return frozenset(
        p.key
        for graph_layer in graph.layers
        if graph_layer.name in names
        for p in graph_layer.params
    )


def _bind_sampler(sampler: Sampler, transfer: Transfer, task: Task) -> Sampler:
    """Return the sampler, bound to the network and the task if it is conditioned."""
    if not isinstance(sampler, ConditionedSampler):
        return sampler
    config = transfer.sane.config
    layout = transfer.template.token_layout(config.token_width)
    positions = config.positions(layout, 0, len(layout))
    context = SamplingContext(positions, describe(task), fingerprint(transfer.sane))
    return bind_sampler(sampler, context)
