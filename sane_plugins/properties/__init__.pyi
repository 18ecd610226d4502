from .category_head import CategoryHead, fit_category
from .comparison import SURE, Comparison, compare_estimates
from .dataset import FeatureDataset
from .estimates import AnyEstimate, CategoryEstimate, Estimate
from .fitting import FitOptions, FittedHeads, fit_heads
from .head_file import AnyHead, load_heads, save_heads
from .numeric_head import PropertyHead, fit_head
from .prediction import PredictOptions, embedded_heads, extract_features, predict

__all__ = [
    "SURE",
    "AnyEstimate",
    "AnyHead",
    "CategoryEstimate",
    "CategoryHead",
    "Comparison",
    "Estimate",
    "FeatureDataset",
    "FitOptions",
    "FittedHeads",
    "PredictOptions",
    "PropertyHead",
    "compare_estimates",
    "embedded_heads",
    "extract_features",
    "fit_category",
    "fit_head",
    "fit_heads",
    "load_heads",
    "predict",
    "save_heads",
]
