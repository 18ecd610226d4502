"""The hook specifications: what a host may call and what a plugin may implement.

Specifications only ever gain arguments; a plugin names the arguments that it wants.

A plugin is a module, or any object, whose functions are marked `hookimpl`. One that needs its host (to open
other sources, to report progress) defines `sane_plugin(host)` instead: it is called once for each host that
loads the plugin, and returns the object whose methods are marked. A class that takes the host will do:

    class Mine:
        def __init__(self, host): self.host = host

        @hookimpl
        def sane_encode(self, source, options): return measure(self.host.open(source))

    sane_plugin = Mine
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins import hookspec

if TYPE_CHECKING:
    import click
    from torch import nn

    from sane_plugins.cost import CostOptions, NetworkCost
    from sane_plugins.engines import Engine
    from sane_plugins.features import EncodeOptions, Encoder, Encoding
    from sane_plugins.generation import Sampler
    from sane_plugins.grafting import PromptOffer, PublishedNetwork, TransferMethod
    from sane_plugins.initialize import Initialization, InitializeOptions
    from sane_plugins.progress import Progress
    from sane_plugins.properties import AnyEstimate, AnyHead, PredictOptions
    from sane_plugins.tasks import Task
    from sane_plugins.weights import WeightGraph

HOOKSPEC_VERSION = (1, 0)


# Abilities: a host calls these. Ours are `trylast`, so that any plugin can answer first.


@hookspec(firstresult=True)
def sane_encode(source: Any, options: EncodeOptions | None) -> Encoding | None:
    """Encode a network. Called by hosts and commands with anything that `sane_open` reads.

    Return the encoding, or None to leave it to the next plugin.
    """


@hookspec(firstresult=True)
def sane_predict_properties(
    source: Any, options: PredictOptions | None
) -> Mapping[str, AnyEstimate] | None:
    """Predict properties of a network from its weights. Called by hosts and commands.

    Return one estimate per property, keyed by the property's name, or None to pass. The value of one that is
    not `in_distribution` is told by force only (`properties.is_withheld`).
    """


@hookspec(firstresult=True)
def sane_cost(source: Any, options: CostOptions | None) -> NetworkCost | None:
    """Count what running a network takes, without its weights. Called by hosts and commands.

    Return the cost, or None to leave it to the next plugin. Decline before importing.
    """


@hookspec(firstresult=True)
def sane_initialize(
    target: Any, task: Task | None, prompts: Sequence[Any], options: InitializeOptions | None
) -> Initialization | None:
    """Initialise `target` for `task` from prompt networks. Called by hosts and `sane-init`.

    Empty `prompts` mean the embedded ones. Return the initialisation, or None to pass.
    """


# Extensions: a plugin author implements these.


@hookspec(firstresult=True)
def sane_open(source: Any) -> WeightGraph | None:
    """Read a network. Called with a path, a name such as `torchvision:resnet18`, a module or a state
    dict; return its graph, or None where the source is not yours. Decline before importing. The host checks
    that the graph holds together, and leaves out one that does not.
    """


@hookspec(firstresult=True)
def sane_build(source: Any, classes: int | None) -> nn.Module | None:
    """Build a runnable module of the source's architecture, with `classes` outputs where given.

    Called when a network must run (training, scoring). Return None where the source is not yours.
    """


@hookspec(firstresult=True)
def sane_save(
    graph: WeightGraph, target: Path, metadata: Mapping[str, Any] | None, like: Any
) -> Path | None:
    """Write a graph to `target` in the form its suffix asks for, beside and renamed, each file once.

    `metadata` are plain data of JSON: put them into the file where its form has room, else beside it (for a
    plugin that does not name this argument, the host does). `like` is a source whose form is to be kept, such
    as the nodes of an ONNX file. Return the path written, or None where the form is not yours.

    The same network gives the same bytes. One that the form cannot hold as it is, is refused here and in
    `sane_check_save`.
    """


@hookspec(firstresult=True)
def sane_side_files(target: Path) -> Sequence[Path] | None:
    """Return the files that `sane_save` may write beside `target`, as that of an ONNX model's values.

    Called before any work: where one exists, or is read by the same run, nothing is begun. Return an empty
    list where there are none, or None where the form is not yours; without an answer it is
    `<target>.provenance.json` alone.
    """


@hookspec(firstresult=True)
def sane_check_save(graph: WeightGraph, target: Path, like: Any) -> bool | None:
    """Raise what `sane_save` would raise, before the work whose result is to be saved. Write nothing.

    Return True where it would save, or None where the form is not yours.
    """


@hookspec
def sane_encoders() -> Mapping[str, Encoder]:
    """Return encoders by name. Collected once per host; built-in names stay built-in."""
    raise NotImplementedError


@hookspec
def sane_samplers() -> Mapping[str, Sampler]:
    """Return samplers of latents by name. Collected once per host."""
    raise NotImplementedError


@hookspec
def sane_transfers() -> Mapping[str, TransferMethod]:
    """Return ways to move a prompt network's weights into another architecture, by name. Collected once per
    host.
    """
    raise NotImplementedError


@hookspec
def sane_property_heads() -> Mapping[str, AnyHead]:
    """Return property heads by name. Collected once per host."""
    raise NotImplementedError


@hookspec
def sane_engines() -> Mapping[str, Engine]:
    """Return engines that spread long jobs over workers, by name. Collected once per host.

    `sane-plugins run --engine NAME` and `Host.encode_many` use them; import libraries when one is called.
    """
    raise NotImplementedError


@hookspec
def sane_prompts() -> Mapping[str, PromptOffer]:
    """Return prompt networks by name: what is known of each, and a function that reads it when it is wanted.

    Collected once per host, and by `sane-plugins list`: read nothing, and import no library of models.
    """
    raise NotImplementedError


@hookspec
def sane_published_networks() -> Mapping[str, PublishedNetwork]:
    """Return published networks by name: what builds each, and what is known of its weights.

    A file of their names and shapes is recognised, whether or not the weights are offered as prompts.
    Collected once per host: build nothing.
    """
    raise NotImplementedError


@hookspec
def sane_commands() -> Sequence[click.Command]:
    """Return commands to add below `sane-plugins`. Called when the command line starts: stay light."""
    raise NotImplementedError


# Observation.


@hookspec
def sane_progress(event: Progress) -> None:
    """Observe a long job. Called for every step reported; must return quickly."""
