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
from .filled_transfer import FilledTransfer
from .latent_refinement import RefineOptions, refine, require_refining
from .prompt_form import connected_like, in_one_order
from .prompts import Prompts, choose_prompts, default_prompts, embedded_prompts
from .samplers import (
    KDE,
    ConditionedSampler,
    Gaussian,
    Sampler,
    SamplerError,
    SamplingContext,
    bind_sampler,
    draw,
    sampler_name,
)
from .transfer import Transfer, align_to_target, plan_transfer

__all__ = [
    "KDE",
    "ConditionedSampler",
    "Denoiser",
    "DenoiserConfig",
    "DenoiserExample",
    "Diffusion",
    "FilledTransfer",
    "Gaussian",
    "Prompts",
    "RefineOptions",
    "Sampler",
    "SamplerError",
    "SamplingContext",
    "Transfer",
    "align_to_target",
    "bind_sampler",
    "choose_prompts",
    "connected_like",
    "default_prompts",
    "draw",
    "embedded_prompts",
    "fit_denoiser",
    "in_one_order",
    "load_denoiser",
    "plan_transfer",
    "refine",
    "require_refining",
    "rescale",
    "sampler_name",
    "save_denoiser",
]
