from .layer_matching import LayerMatching, TensorPair, match_layers
from .network_fingerprint import NetworkFingerprint, TensorFingerprint, fingerprint

__all__ = [
    "LayerMatching",
    "NetworkFingerprint",
    "TensorFingerprint",
    "TensorPair",
    "fingerprint",
    "match_layers",
]
