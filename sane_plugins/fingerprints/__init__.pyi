from .family_trees import FamilyTree, Member, families, family_tree, tails
from .layer_matching import LayerMatching, TensorPair, match_layers
from .nearest_networks import Alike, Neighbor, most_alike, nearest
from .network_fingerprint import NetworkFingerprint, TensorFingerprint, fingerprint
from .packed import PackedFingerprints, from_arrays, pack_all, to_arrays
from .pairs_of_many import ManyNetworks
from .relationship import Relationship, relate

__all__ = [
    "Alike",
    "FamilyTree",
    "LayerMatching",
    "ManyNetworks",
    "Member",
    "Neighbor",
    "NetworkFingerprint",
    "PackedFingerprints",
    "Relationship",
    "TensorFingerprint",
    "TensorPair",
    "families",
    "family_tree",
    "fingerprint",
    "from_arrays",
    "match_layers",
    "most_alike",
    "nearest",
    "pack_all",
    "relate",
    "tails",
    "to_arrays",
]
