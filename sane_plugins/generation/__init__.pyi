from .batchnorm import condition, conditioned
from .classifier import find_classifier, fit_classifier
from .default_scale import rescale
from .denoiser import (
    Denoiser,
    DenoiserConfig,
    DenoiserExample,
    fit_denoiser,
    load_denoiser,
    save_denoiser,
)
from .diffusion import Diffusion
from .prompts import Prompts, choose_prompts, embedded_prompts
from .samplers import KDE, ConditionedSampler, Gaussian, Sampler, SamplingContext
from .transfer import Transfer, align_to_target, plan_transfer

__all__ = [
    "KDE",
    "ConditionedSampler",
    "Denoiser",
    "DenoiserConfig",
    "DenoiserExample",
    "Diffusion",
    "Gaussian",
    "Prompts",
    "Sampler",
    "SamplingContext",
    "Transfer",
    "align_to_target",
    "choose_prompts",
    "condition",
    "conditioned",
    "embedded_prompts",
    "find_classifier",
    "fit_classifier",
    "fit_denoiser",
    "load_denoiser",
    "plan_transfer",
    "rescale",
    "save_denoiser",
]
