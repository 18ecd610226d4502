"""The problem of an initialisation: the set-up that all candidates share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakSet

from torch import nn

from sane_plugins.architectures import call_anew
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.errors import SourceError, TaskError, UsageError
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
    require_refining,
)
from sane_plugins.grafting import PromptNetwork, TransferMethod, base_of, find_classifier
from sane_plugins.initialize.options import InitializeOptions
from sane_plugins.initialize.pruned import PrunedNetwork, fresh_copies
from sane_plugins.progress import Report, silent
from sane_plugins.runtime import random_stream, seeded
from sane_plugins.tasks import Task, describe, forward_flops, require_fit
from sane_plugins.weights import WeightGraph, copy_module, from_module

_EPOCH_FLOPS = 3e11  # about ten seconds on two cores
_FORWARDS_PER_TRAINING_STEP = 3  # the cost of a training step, in forward passes
_MIN_IMAGES, _MAX_IMAGES = 256, 10_000
_MAX_VALUES = 2**27  # of the training images: half a gigabyte


@dataclass(frozen=True, kw_only=True, eq=False)
class InitializationProblem:
    """A network, a task and prompts, prepared for generating candidates.

    `build_network` returns the network at its default initialisation, another draw each time if `is_fresh`;
    `graph` is one of them, read. `classifier` holds the keys of its classifier's tensors (empty: it is not a
    linear layer). `task` has training images to train on and, as its test images, training images to choose
    by. `flops` counts the operations of one image's forward pass. `prompts` are what SANE candidates are
    drawn near, `prompt_networks` what `methods` transfer. `transfer` and `sampler` say how near the
    `prompts` candidates are drawn, and are None before these are encoded.
    """

    options: InitializeOptions
    build_network: Callable[[], nn.Module]
    is_fresh: bool
    graph: WeightGraph
    classifier: frozenset[str]
    task: Task
    flops: int
    sane: SANE
    prompts: tuple[WeightGraph, ...] = ()
    prompt_networks: tuple[PromptNetwork, ...] = ()
    methods: Mapping[str, TransferMethod] = field(default_factory=dict)
    transfer: Transfer | None = None
    sampler: Sampler | None = None
    pruned: PrunedNetwork | None = None

    @property
    def fits_classifier(self) -> bool:
        """Return whether candidates get a fitted classifier."""
        return self.options.classifier == "fit" and bool(self.classifier)

    @property
    def chance(self) -> float:
        """Return the accuracy of the best constant answer on the images to choose by."""
        labels = self.task.y_test
        return float(labels.bincount().max()) / len(labels) if len(labels) else 0.0

    @property
    def transfer_names(self) -> tuple[str, ...]:
        """Return the methods that transfer a prompt network, in the order in which they are tried."""
        needing = (k for k, method in self.methods.items() if getattr(method, "needs_prompt", True))
        return tuple(needing) if self.prompt_networks else ()

    @property
    def promptless_names(self) -> tuple[str, ...]:
        """Return the methods that need no prompt: they draw structured defaults."""
        return tuple(k for k, x in self.methods.items() if not getattr(x, "needs_prompt", True))

    @property
    def dense(self) -> int | None:
        """Return the number of the prompt network that the target may have been pruned from, if any.

        It has as many tensors and more values; the method that fits to it tells for certain.
        """
        if self.is_fresh:
            return None
        count, size = len(self.graph.params), self.graph.size
        return next(
            (
                number
                for number, network in enumerate(self.prompt_networks)
                if len(network.graph.params) == count and network.graph.size > size
            ),
            None,
        )

    def first_of_base(self, name: str) -> str:
        """Return the first method that begins as this one does: it, or one of an equal base."""
        base = base_of(self.methods[name])
        same = (k for k, x in self.methods.items() if base_of(x) == base)
        return name if base is None else next(same)

    @property
    def sane_transfer(self) -> Transfer:
        """Return how latents become weights. Raises `SourceError` if the prompts are not encoded."""
        if self.transfer is None:
            raise SourceError(
                "the prompts",
                "none is encoded",
                "SANE candidates and prompts as they are need one",
                "name a file from sane-init",
            )
        return self.transfer

    @property
    def tokens(self) -> tuple[int, int]:
        """Return about how many tokens are encoded for all prompts, and decoded for one candidate.

        Only prompts of one shape are used together, the target's where there are such.
        """
        width, count = self.sane.config.token_width, len(self.graph.params)
        fitting = [p for p in self.prompts if len(p.params) == count] or [*self.prompts]
        shapes = [param.shape for param in fitting[0].params] if fitting else []
        used = [p for p in fitting if [param.shape for param in p.params] == shapes]
        lengths = [len(prompt.token_layout(width)) for prompt in used]
        return sum(lengths), len(self.graph.token_layout(width))

    def read(self, module: nn.Module) -> WeightGraph:
        """Return the graph of a network that `build_network` built, without tracing its layers again."""
        tensors = module.state_dict()
        if tensors.keys() != self.graph.tensors.keys():  # folded by pruning or a parametrisation
            return from_module(module)
        return replace(self.graph, tensors=tensors)

    def encoded(self, report: Report = silent, label: str = "align") -> InitializationProblem:
        """Return the same problem with its prompts encoded, to draw near them.

        Raises `UsageError` where no prompt has a layer of the target's kinds.
        """
        rng = random_stream(self.options.seed, label)
        prompts: Sequence[WeightGraph] = self.prompts
        if label == "align" and self.pruned is not None:
            prompts = [align_to_target(prompt, self.graph, rng) for prompt in prompts]
        elif label == "align":
            prompts = [in_one_order(prompt) for prompt in prompts]
        transfer = plan_transfer(prompts, self.graph, self.classifier, self.sane, rng, report)
        sampler = _bind_sampler(self.options.sampler, transfer, self.task)
        return replace(self, transfer=transfer, sampler=sampler)

    def with_prompts(
        self, prompts: Sequence[WeightGraph], report: Report = silent
    ) -> InitializationProblem:
        """Return the same problem with other prompts, which have the target's shapes."""
        return replace(self, prompts=tuple(prompts)).encoded(report, "align few")


def prepare(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions,
    report: Report = silent,
) -> InitializationProblem:
    """Set up a problem and encode its prompts. Raises what `set_up` and `encoded` raise."""
    return set_up(target, task, prompts, sane, options).encoded(report)


def set_up(
    target: nn.Module | Callable[[], nn.Module],
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    options: InitializeOptions,
    prompt_networks: Sequence[PromptNetwork] = (),
    methods: Mapping[str, TransferMethod] | None = None,
) -> InitializationProblem:
    """Build the target once, and split the task's training images; no prompt is encoded yet.

    Raises `TaskError` where images or classes do not fit the network, `UsageError` without prompts, or where
    no tensor's name matches.
    """
    build_network, is_fresh = _network_builder(target)
    with seeded(random_stream(options.seed, "first")):
        module = build_network()
    require_fit(module, task)
    _require_match(module, options)
    if not prompts and not prompt_networks:
        raise UsageError(
            "prompts",
            "none were given",
            "at least one network is needed to sample near",
            "give one, or leave them out to use those that ship with the package",
        )
    if options.refine:
        require_refining(sane)
    if options.pruned and options.refine:
        raise UsageError(
            "--refine",
            "it is given with --pruned",
            "steps on latents move all weights, and of a pruned network only zeros may change",
            "leave one of them out",
        )
    flops = forward_flops(module, task.x_train[:1])
    graph = from_module(module)
    classifier = _classifier_keys(module, graph, task)
    pruned = None
    if options.pruned:
        pruned = PrunedNetwork.of(graph, classifier)
        build_network, is_fresh = fresh_copies(module), True
    runnable = [network for network in prompt_networks if network.build is not None]
    problem = InitializationProblem(
        options=options,
        build_network=build_network,
        is_fresh=is_fresh,
        graph=graph,
        classifier=classifier,
        task=split_images(task, flops, options),
        flops=flops,
        sane=sane,
        prompts=tuple(connected_like(prompt, graph, classifier) for prompt in prompts),
        # A pruned network's survivors are the only weights that it is lent.
        prompt_networks=() if options.pruned else tuple(runnable),
        methods={} if options.pruned else methods or {},
        pruned=pruned,
    )
    if problem.dense is not None:
        return problem
    others = {k: x for k, x in problem.methods.items() if not needs_own_weights(x)}
    return replace(problem, methods=others)


def needs_own_weights(method: TransferMethod) -> bool:
    """Return whether a method fits what pruning left of a network, and writes into nothing else."""
    return bool(getattr(method, "needs_own_weights", False))


def split_images(task: Task, flops: int, options: InitializeOptions) -> Task:
    """Split the training images into some to train on and some to choose by, which become the test images.

    Of a task that has images to choose by, all training images are trained on. Files of earlier versions
    name no rung: their images are as many as an epoch could afford, given the `flops` of one image's forward
    pass.
    """
    rng = random_stream(options.seed, "data")
    if options.rung is None:
        affordable = int(_EPOCH_FLOPS / (_FORWARDS_PER_TRAINING_STEP * flops))
        max_images = min(max(affordable, _MIN_IMAGES), _MAX_IMAGES)
    else:
        max_images = min(max(_MAX_VALUES // task.x_train[0].numel(), _MIN_IMAGES), _MAX_IMAGES)
    held_out = min(options.validation_images, max_images)
    if task.x_validation is None:
        split_task = task.held_out(min(options.validation, held_out / len(task.y_train)), rng)
    else:
        split_task = task.with_validation_for_test(held_out, rng)
    if options.scored and not len(split_task.y_test):
        raise TaskError(
            task.name,
            "no class has two images or more",
            "one of a class at least is needed to choose by",
            "give more images, or images to choose by",
        )
    return split_task.subset(options.images or max_images, rng).to(options.device)


def _network_builder(
    target: nn.Module | Callable[[], nn.Module],
) -> tuple[Callable[[], nn.Module], bool]:
    """Return a function that builds the network, and whether each call draws fresh weights."""
    if isinstance(target, nn.Module):
        return (lambda: copy_module(target)), False
    built = WeakSet[nn.Module]()

    def build() -> nn.Module:
        module = call_anew(target)
        if module in built:  # the function gives one network each time, which stays as it is
            return copy_module(module)
        built.add(module)
        return module

    return build, True


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
