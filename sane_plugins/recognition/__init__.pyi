from .by_factory import NamedBuilder, fit_builder, with_layers_built
from .by_order import find_by_order
from .candidates import ArchitectureCandidate, BuildNamed, find_candidates
from .index import IndexedArchitecture, indexed_architectures, kinds_text, pack_index
from .layer_order import LEAST_TENSORS, names_by_place, ordered_signature
from .library_names import close_names, library_sources
from .meta_build import build_on_meta
from .recognize import Recognizer
from .signature import Counts, Length, Signature, fit_lengths, float_shapes
from .topology import layer_kinds, topology_digest

__all__ = [
    "LEAST_TENSORS",
    "ArchitectureCandidate",
    "BuildNamed",
    "Counts",
    "IndexedArchitecture",
    "Length",
    "NamedBuilder",
    "Recognizer",
    "Signature",
    "build_on_meta",
    "close_names",
    "find_by_order",
    "find_candidates",
    "fit_builder",
    "fit_lengths",
    "float_shapes",
    "indexed_architectures",
    "kinds_text",
    "layer_kinds",
    "library_sources",
    "names_by_place",
    "ordered_signature",
    "pack_index",
    "topology_digest",
    "with_layers_built",
]
