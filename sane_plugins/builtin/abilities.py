"""The three abilities that hosts call. They come last, so that any plugin can answer first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl
from sane_plugins.progress import current

if TYPE_CHECKING:
    from sane_plugins.features import EncodeOptions, Encoding
    from sane_plugins.initialize import Initialization, InitializeOptions
    from sane_plugins.properties import AnyEstimate, PredictOptions
    from sane_plugins.tasks import Task


@hookimpl(trylast=True)
def sane_encode(source: Any, options: EncodeOptions | None) -> Encoding:
    """Encode with the autoencoder, or whichever encoder the options name."""
    from sane_plugins.features import embed
    from sane_plugins.host import Host

    host = Host.active()
    return embed(host.open(source), options, host.encoders())


@hookimpl(trylast=True)
def sane_predict_properties(
    source: Any, options: PredictOptions | None
) -> Mapping[str, AnyEstimate]:
    """Predict with every property head that plugins offer."""
    from sane_plugins.host import Host
    from sane_plugins.properties import predict

    host = Host.active()
    return predict(host.open(source), host.property_heads(), options=options)


@hookimpl(trylast=True)
def sane_initialize(
    target: Any, task: Task | None, prompts: Sequence[Any], options: InitializeOptions | None
) -> Initialization | None:
    """Initialise from the prompts that were given, or from those that ship and fit the target."""
    if task is None:
        return None
    from torch import nn

    from sane_plugins.autoencoder import embedded_sane, load_sane
    from sane_plugins.generation import choose_prompts, embedded_prompts
    from sane_plugins.host import Host
    from sane_plugins.initialize import generate, initialize

    notes: tuple[str, ...] = ()
    graphs = tuple(Host.active().open(prompt) for prompt in prompts)
    if not graphs:
        chosen = choose_prompts(
            target if isinstance(target, nn.Module) else target(), embedded_prompts()
        )
        graphs, notes = chosen.graphs, chosen.notes
    own = options.model if options is not None else None
    sane = embedded_sane() if own is None else load_sane(own)
    if options is not None and not options.scored:
        done = generate(target, task, graphs, sane, options)
    else:
        done = initialize(target, task, graphs, sane, options, current())
    return replace(done, notes=(*notes, *done.notes))
