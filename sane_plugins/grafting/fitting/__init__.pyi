from .feature_regression import regress_features
from .layer_fit import LayerFit, layer_fits
from .protective_scale import protect_links, protect_scale
from .residual_sum import residual_sums
from .ridge_layers import ridge_steps
from .source_features import FeatureRequest, PreparedNetwork, source_features

__all__ = [
    "FeatureRequest",
    "LayerFit",
    "PreparedNetwork",
    "layer_fits",
    "protect_links",
    "protect_scale",
    "regress_features",
    "residual_sums",
    "ridge_steps",
    "source_features",
]
