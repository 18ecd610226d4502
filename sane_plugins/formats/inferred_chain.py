"""How the layers of a file are connected, where their widths leave one possibility.

Shapes alone never prove a connection. It is taken that the file holds one network with one input and one
output, in torch's layout, whose layers are each called once and read one value each, or a sum or
concatenation of several, and that whatever lies between two layers treats all channels alike: activations,
softmax, pooling, dropout and a flatten do; a shuffle, padding or split of channels and a local response
norm do not. Under these, a connection is told only where nothing else fits:

- All layers with weights form one chain from a width that none gives to a width that none reads. A
  branch, a concatenation, gated halves, a second head or a lone parameter break it.
- One layer gives the width and one reads it, so that nothing can be added to the value between them.
- No width that several layers give is greater: one of its readers could read the value beside others.
- The reading layer's own output has a width that no other layer gives, so that no padded or cut shortcut
  around it is added there.
- A first kernel of one input channel is not depthwise: it gives more channels than an image has, and no
  kernel of one place reads them.
- Norms of this width have running statistics: others may normalise groups of channels.

Everything else stays unconnected, and is never permuted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sane_plugins.weights import RUNNING, Layer, Param

INFERRED = "topology inferred: "
_INPUT, _UNKNOWN, _FLATTEN, _OUTPUT = "%input", "%unknown", "%flatten", "%output"

_MAX_IMAGE_CHANNELS = 4


@dataclass(frozen=True)
class _Matrix:
    """A layer with a weight matrix, and the widths of what it reads and gives."""

    layer: Layer
    weight: Param
    reads: int
    gives: int

    @property
    def is_conv(self) -> bool:
        return self.layer.kind == "conv"


@dataclass(frozen=True)
class _WidthChain:
    """A network as one chain: its matrices, the width it begins with, and that of its flattened maps.

    `flattened` is (channels, channels times places) where convolutions end and linear layers begin.
    """

    matrices: tuple[_Matrix, ...]
    first: int
    flattened: tuple[int, int]


def infer_chain(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], str]:
    """Return the layers with the inputs that are certain, and a note; () and "" where none is."""
    chain, vectors = _find_chain(layers), _vectors(layers)
    if chain is None or vectors is None or not _fits(vectors, chain):
        return (), ""
    gives = Counter(matrix.gives for matrix in chain.matrices)
    shared = {w for w, count in gives.items() if count > 1}
    links = [
        (giver, reader)
        for giver, reader in _only_pairs(chain)
        if giver.gives > max(shared, default=0) and reader.gives not in shared
        if not (reader.is_conv and not giver.is_conv) and not _may_be_depthwise(giver, reader)
        if _are_plain(vectors, giver, reader)
    ]
    if not links:
        return (), ""
    names = {matrix.layer.name for pair in links for matrix in pair}
    return _connect(layers, chain, links, vectors), (
        f"{INFERRED}{len(names)} of {len(chain.matrices)} layers with weight matrices are connected by"
        " their widths, taking it that the network is one chain and treats all channels alike between"
        " layers"
    )


def _find_chain(layers: Sequence[Layer]) -> _WidthChain | None:
    """Return the chain that all matrices form, or None."""
    matrices = [m for m in map(_matrix, layers) if m]
    ranks = {len(m.weight.shape) for m in matrices if m.is_conv}
    if len(matrices) < 2 or len(ranks) > 1 or any(m.layer.groups > 1 for m in matrices):
        return None
    if ends := _chain_ends(matrices):
        return _WidthChain(tuple(matrices), ends[0], (0, 0))
    convs = _chain_ends([m for m in matrices if m.is_conv])
    linears = _chain_ends([m for m in matrices if not m.is_conv])
    if not convs or not linears or not _are_square_maps(convs[1], linears[0], *ranks):
        return None
    return _WidthChain(tuple(matrices), convs[0], (convs[1], linears[0]))


def _matrix(layer: Layer) -> _Matrix | None:
    weights = [p for p in layer.params if len(p.shape) > 1]
    if layer.kind not in ("conv", "linear") or len(weights) != 1:
        return None
    (weight,) = weights
    return _Matrix(layer, weight, weight.shape[1 - weight.axis], weight.shape[weight.axis])


def _chain_ends(matrices: Sequence[_Matrix]) -> tuple[int, int] | None:
    """Return the first and last width of a chain through all layers, or None.

    It is an Eulerian path over widths: each layer leads from the width it reads to that which it gives.
    """
    gives, reads = Counter(m.gives for m in matrices), Counter(m.reads for m in matrices)
    firsts = [w for w, n in reads.items() if n > gives[w]]
    lasts = [w for w, n in gives.items() if n > reads[w]]
    if len(firsts) != 1 or len(lasts) != 1:
        return None
    (first,), (last,) = firsts, lasts
    is_path = gives[first] == 0 == reads[last] and reads[first] == 1 == gives[last]
    return (first, last) if is_path and _are_joined(matrices, first) else None


def _are_joined(matrices: Sequence[_Matrix], first: int) -> bool:
    """Return whether all widths are reached from the first."""
    following = defaultdict(list)
    for matrix in matrices:
        following[matrix.reads].append(matrix.gives)
    reached, pending = {first}, [first]
    while pending:
        for w in following.pop(pending.pop(), ()):
            if w not in reached:
                reached.add(w)
                pending.append(w)
    return not following


def _are_square_maps(channels: int, features: int, rank: int) -> bool:
    """Return whether flattened maps of all channels are square, or cubes; of sequences that says nothing."""
    places, rest = divmod(features, channels) if channels else (0, 1)
    axes = rank - 2
    return not rest and axes > 1 and places > 1 and round(places ** (1 / axes)) ** axes == places


def _vectors(layers: Sequence[Layer]) -> dict[int, list[Layer]] | None:
    """Return norms and slopes by their width; None where there are tensors of any other use."""
    by_width: dict[int, list[Layer]] = {}
    for layer in layers:
        if _matrix(layer) or not layer.params:
            continue
        shapes = {p.shape for p in layer.params}
        ranks = {len(shape) for shape in shapes}
        if layer.kind not in ("norm", "pointwise") or len(shapes) != 1 or ranks != {1}:
            return None
        if layer.params[0].size > 1:
            by_width.setdefault(layer.params[0].size, []).append(layer)
    return by_width


def _fits(vectors: Mapping[int, Sequence[Layer]], chain: _WidthChain) -> bool:
    """Return whether every norm has a width of the chain, and no name is one that is given here."""
    widths = {w for m in chain.matrices for w in (m.reads, m.gives)}
    names = {m.layer.name for m in chain.matrices} | {
        layer.name for found in vectors.values() for layer in found
    }
    return vectors.keys() <= widths and not names & {_INPUT, _UNKNOWN, _FLATTEN, _OUTPUT}


def _only_pairs(chain: _WidthChain) -> Iterable[tuple[_Matrix, _Matrix]]:
    """Yield the giver and the reader of each width that one layer gives and one reads."""
    givers: dict[int, list[_Matrix]] = {}
    readers: dict[int, list[_Matrix]] = {}
    for matrix in chain.matrices:
        givers.setdefault(matrix.gives, []).append(matrix)
        readers.setdefault(matrix.reads, []).append(matrix)
    channels, features = chain.flattened
    for w, given in givers.items():
        reading = readers.get(w, [])
        if features and w == channels:
            reading = [*reading, *readers[features]]
            given = [*given, *givers.get(features, ())]
        if len(given) == len(reading) == 1:
            yield given[0], reading[0]


def _may_be_depthwise(giver: _Matrix, reader: _Matrix) -> bool:
    """Return whether a kernel of one input channel may read each channel of an image by itself."""
    if not giver.is_conv or giver.reads > 1:
        return False
    is_separable = reader.is_conv and max(reader.weight.shape[2:]) == 1
    return is_separable or giver.gives <= _MAX_IMAGE_CHANNELS


def _are_plain(vectors: Mapping[int, Sequence[Layer]], giver: _Matrix, reader: _Matrix) -> bool:
    """Return whether all norms between two layers treat each channel by itself."""
    between = [*vectors.get(giver.gives, ()), *vectors.get(reader.reads, ())]
    return all(
        layer.kind == "pointwise" or {*RUNNING} <= {p.role for p in layer.params}
        for layer in between
    )


def _connect(
    layers: Sequence[Layer],
    chain: _WidthChain,
    links: Sequence[tuple[_Matrix, _Matrix]],
    vectors: Mapping[int, Sequence[Layer]],
) -> tuple[Layer, ...]:
    """Return the layers with their inputs, and with what stands for the unknown around them."""
    inputs: dict[str, str] = {}
    added = [Layer(name=_INPUT, kind="input"), Layer(name=_UNKNOWN, kind="opaque")]
    for giver, _ in links:
        is_first = giver.reads == chain.first
        inputs[giver.layer.name] = _INPUT if is_first else _UNKNOWN
    for giver, reader in links:
        value = giver.layer.name
        for layer in vectors.get(giver.gives, ()):
            inputs[layer.name], value = value, layer.name
        if giver.is_conv and not reader.is_conv:
            added.append(Layer(name=_FLATTEN, kind="flatten", inputs=(value,), dims=(1,)))
            value = _FLATTEN
        if reader.reads != giver.gives:
            for layer in vectors.get(reader.reads, ()):
                inputs[layer.name], value = value, layer.name
        inputs[reader.layer.name] = value
    givers = {giver.layer.name for giver, _ in links}
    open_ends = [b.layer.name for _, b in links if b.layer.name not in givers]
    added.append(Layer(name=_OUTPUT, kind="output", inputs=tuple(open_ends)))
    return (
        *added,
        *(
            replace(layer, inputs=(inputs[layer.name],)) if layer.name in inputs else layer
            for layer in layers
        ),
    )
