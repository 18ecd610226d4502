from .abstention import UNLIKE, estimate_record, estimate_text, is_withheld, withheld_note
from .comparison import SURE, Comparison, compare_estimates
from .dataset import FEATURES, FeatureDataset
from .estimates import AnyEstimate, CategoryEstimate, Estimate
from .fitting.kinds_fit import fit_kinds
from .fitting.selection import CRITERIA, embed_rows
from .fitting.suggest_networks import Suggestions, SuggestOptions, suggest_networks
from .fitting.zoo_features import zoo_features
from .fitting.zoo_heads import FitOptions, FittedHeads, fit_heads
from .heads.category_head import CategoryHead, fit_category
from .heads.head_file import AnyHead, load_heads, save_heads
from .heads.kinds_head import KindsHead
from .heads.numeric_head import PropertyHead, fit_head
from .prediction import PredictOptions, embedded_heads, extract_features, heads_like, predict
from .ranking import Rank, rank_all, rank_unknown

__all__ = [
    "CRITERIA",
    "FEATURES",
    "SURE",
    "UNLIKE",
    "AnyEstimate",
    "AnyHead",
    "CategoryEstimate",
    "CategoryHead",
    "Comparison",
    "Estimate",
    "FeatureDataset",
    "FitOptions",
    "FittedHeads",
    "KindsHead",
    "PredictOptions",
    "PropertyHead",
    "Rank",
    "SuggestOptions",
    "Suggestions",
    "compare_estimates",
    "embed_rows",
    "embedded_heads",
    "estimate_record",
    "estimate_text",
    "extract_features",
    "fit_category",
    "fit_head",
    "fit_heads",
    "fit_kinds",
    "heads_like",
    "is_withheld",
    "load_heads",
    "predict",
    "rank_all",
    "rank_unknown",
    "save_heads",
    "suggest_networks",
    "withheld_note",
    "zoo_features",
]
