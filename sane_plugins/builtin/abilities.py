"""The three abilities that hosts call, as hooks that are tried last, so that any plugin can answer first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import FunctionType, NoneType
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl
from sane_plugins.arguments import require_type
from sane_plugins.progress import silent

if TYPE_CHECKING:
    from sane_plugins.features import EncodeOptions, Encoding
    from sane_plugins.host import Host
    from sane_plugins.initialize import Initialization, InitializeOptions
    from sane_plugins.properties import AnyEstimate, PredictOptions
    from sane_plugins.tasks import Task


class Abilities:
    """Encode, predict and initialise, with what the plugins of a host open and offer."""

    host: Host

    @hookimpl(trylast=True)
    def sane_encode(self, source: Any, options: EncodeOptions | None) -> Encoding:
        """Encode with the autoencoder, or whichever encoder the options name."""
        from sane_plugins.features import EncodeOptions, embed

        require_type("encode, options", options, EncodeOptions, NoneType)
        options = options or EncodeOptions()
        if options.report is silent:
            options = replace(options, report=self.host.report)
        return embed(self.host.open(source), options, self.host.encoders())

    @hookimpl(trylast=True)
    def sane_predict_properties(
        self, source: Any, options: PredictOptions | None
    ) -> Mapping[str, AnyEstimate]:
        """Predict with every property head that plugins offer."""
        from sane_plugins.properties import PredictOptions, predict

        require_type("predict, options", options, PredictOptions, NoneType)
        graph, heads = self.host.open(source), self.host.property_heads()
        return predict(graph, heads, options=options, report=self.host.report)

    @hookimpl(trylast=True)
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

        from sane_plugins.autoencoder import embedded_sane, load_sane
        from sane_plugins.generation import choose_prompts, embedded_prompts
        from sane_plugins.initialize import InitializeOptions, generate, initialize
        from sane_plugins.tasks import Task

        require_type("initialize, task", task, Task, way_out="read one with load_task()")
        require_type("initialize, prompts", prompts, list, tuple, way_out="give a list of prompts")
        require_type("initialize, options", options, InitializeOptions, NoneType)
        if not callable(target):
            require_type("initialize, target", target, nn.Module, FunctionType)
        notes: tuple[str, ...] = ()
        graphs = tuple(self.host.open(prompt) for prompt in prompts)
        if not graphs:
            chosen = choose_prompts(
                target if isinstance(target, nn.Module) else target(), embedded_prompts()
            )
            graphs, notes = chosen.graphs, chosen.notes
        sane_path = options.sane if options is not None else None
        sane = embedded_sane() if sane_path is None else load_sane(sane_path)
        if options is not None and not options.scored:
            result = generate(target, task, graphs, sane, options, self.host.report)
        else:
            result = initialize(target, task, graphs, sane, options, self.host.report)
        return replace(result, notes=(*notes, *result.notes))
