"""The abilities that hosts call, as hooks that are tried last, so that any plugin can answer first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from types import FunctionType, NoneType
from typing import TYPE_CHECKING, Any, TypeVar

from sane_plugins import hookimpl
from sane_plugins.arguments import require_type
from sane_plugins.errors import SaneError
from sane_plugins.plugins import Problem, to_plugin_error
from sane_plugins.progress import silent

if TYPE_CHECKING:
    from sane_plugins.cost import CostOptions, NetworkCost
    from sane_plugins.features import EncodeOptions, Encoding
    from sane_plugins.generation import SamplerError
    from sane_plugins.grafting import PromptNetwork
    from sane_plugins.host import Host
    from sane_plugins.initialize import Initialization, InitializeOptions
    from sane_plugins.properties import AnyEstimate, AnyHead, PredictOptions
    from sane_plugins.tasks import Task

T = TypeVar("T")


def _in_usual_modes(ability: Callable[..., T]) -> Callable[..., T]:
    """Compute without the modes that a program's thread may be in: inference, no gradients, autocast.

    What the code of the user's network raises is told as its error.
    """

    @wraps(ability)
    def run(*args: Any, **named: Any) -> T:
        import torch

        from sane_plugins.weights import network_errors_told

        with (
            network_errors_told(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            return ability(*args, **named)

    return run


@dataclass(frozen=True)
class _Guarded:
    """What a plugin offered, or a callable attribute of it; where a call fails, the plugin is blamed."""

    host: Host = field(compare=False)
    hook: str
    offered: Any = field(compare=False)
    part: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.part(*arguments)
        except SaneError:
            raise
        except Exception as error:
            problem = self.host.blame(self.hook, self.offered, error)
            raise to_plugin_error(problem) from error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copies that are not whole yet
            raise AttributeError(name)
        value = getattr(self.part, name)
        return replace(self, part=value) if callable(value) else value


class Abilities:
    """Encode, predict and initialise, with what the plugins of a host open and offer."""

    host: Host

    @hookimpl(trylast=True)
    @_in_usual_modes
    def sane_encode(self, source: Any, options: EncodeOptions | None) -> Encoding:
        """Encode with the autoencoder, or whichever encoder the options name."""
        from sane_plugins.features import EncodeOptions, embed

        require_type("encode, options", options, EncodeOptions, NoneType)
        options = options or EncodeOptions()
        if options.report is silent:
            options = replace(options, report=self.host.report)
        graph, encoders = self.host.open(source), self.host.encoders()
        encoding: Encoding
        encoding, problem = self.host.use(
            "sane_encoders",
            encoders.get(options.encoder),
            lambda: embed(graph, options, encoders),
            device=options.device,
            raised=(SaneError,),
        )
        if problem is not None:
            raise to_plugin_error(problem) from problem.cause
        return encoding

    @hookimpl(trylast=True)
    @_in_usual_modes
    def sane_predict_properties(
        self, source: Any, options: PredictOptions | None
    ) -> Mapping[str, AnyEstimate]:
        """Predict with every property head that plugins offer."""
        from sane_plugins.properties import PredictOptions, predict

        require_type("predict, options", options, PredictOptions, NoneType)
        problems: list[Problem] = []

        def attempt(head: AnyHead, make: Callable[[], AnyEstimate]) -> AnyEstimate | None:
            estimate: AnyEstimate | None
            estimate, problem = self.host.use("sane_property_heads", head, make)
            problems.extend([problem] if problem else [])
            return estimate

        graph, heads = self.host.open(source), self.host.property_heads()
        estimates = predict(
            graph,
            heads,
            options=options,
            report=self.host.report,
            attempt=attempt,
            encoders=self.host.encoders(),
        )
        if problems and not estimates:
            cause = problems[0].cause
            if isinstance(cause, SaneError):
                raise cause
            raise to_plugin_error(problems[0]) from cause
        return estimates

    @hookimpl(trylast=True)
    @_in_usual_modes
    def sane_cost(self, source: Any, options: CostOptions | None) -> NetworkCost:
        """Count what the network of a name, a module or a recognised file takes; time it if asked to."""
        from sane_plugins.cost import CostOptions, cost_of, find_network, measure_latency

        require_type("cost, options", options, CostOptions, NoneType)
        options = options or CostOptions()
        found = find_network(source, self.host.open, self.host.recognizer)
        cost = cost_of(found.on_meta(), options, found.name)
        cost = replace(cost, notes=(*found.notes, *cost.notes))
        if options.latency is None:
            return cost
        module = found.with_values()
        latency = measure_latency(module, cost.inputs, options.latency, found.name)
        return replace(cost, latency=latency)

    @hookimpl(trylast=True)
    @_in_usual_modes
    def sane_initialize(
        self,
        target: Any,
        task: Task | None,
        prompts: Sequence[Any],
        options: InitializeOptions | None,
    ) -> Initialization | None:
        """Initialise from the prompts that were given, or from those that ship and fit the target."""
        if task is None:
            return None
        from torch import nn

        from sane_plugins.architectures import call_anew
        from sane_plugins.autoencoder import embedded_sane, load_sane
        from sane_plugins.generation import SamplerError
        from sane_plugins.initialize import InitializeOptions, generate, initialize
        from sane_plugins.runtime import random_stream, seeded
        from sane_plugins.tasks import Task, require_trainable

        require_type("initialize, task", task, Task, way_out="read one with load_task()")
        require_type("initialize, prompts", prompts, list, tuple, way_out="give a list of prompts")
        require_type("initialize, options", options, InitializeOptions, NoneType)
        if not callable(target):
            require_type("initialize, target", target, nn.Module, FunctionType)
        with seeded(random_stream(0)):
            module = target if isinstance(target, nn.Module) else call_anew(target)
        require_trainable(module, task)  # before prompts are read
        networks = tuple(self._prompt_network(prompt, target, task) for prompt in prompts)
        graphs = tuple(network.graph for network in networks)
        # Who gives networks that were read has had their notes.
        read = (x for given, x in zip(prompts, networks, strict=True) if x is not given)
        notes = tuple(text for network in read for text in network.notes)
        if not networks:
            chosen = self.host.default_prompts(module, task)
            networks, graphs, notes = chosen.networks, chosen.graphs, chosen.notes
        sane_path = options.sane if options is not None else None
        sane = embedded_sane() if sane_path is None else load_sane(sane_path)
        make = generate if options is not None and not options.scored else initialize
        try:
            result = make(
                target,
                task,
                graphs,
                sane,
                options,
                self.host.report,
                prompt_networks=networks,
                methods=self._transfer_methods(),
            )
        except SamplerError as error:
            self._blame_sampler(options, error)
            raise
        if result.sampler_error is not None:
            self._blame_sampler(options, result.sampler_error)
        return replace(result, notes=(*notes, *result.notes))

    def _prompt_network(self, prompt: Any, target: Any, task: Task) -> PromptNetwork:
        """Read a prompt; a file of what a module was pruned from runs with the module's code."""
        from torch import nn

        from sane_plugins.prompts import run_as_wider

        network = self.host.prompt_network(prompt)
        is_read = network is not prompt or network.build is None
        if is_read and isinstance(target, nn.Module):
            return run_as_wider(network, target, task.x_train)
        return network

    def _transfer_methods(self) -> dict[str, Callable[..., Any]]:
        """Return the methods that plugins offer; one that fails is recorded, and `SaneError` raised."""
        return {
            name: _Guarded(self.host, "sane_transfers", method, method)
            for name, method in self.host.transfers().items()
        }

    def _blame_sampler(self, options: InitializeOptions | None, error: SamplerError) -> None:
        if options is not None:
            self.host.blame("sane_samplers", options.sampler, error.__cause__ or error)
