"""The networks: a masked-diffusion denoiser, left-to-right scorers and a learned energy."""

from edlm_engine.models.autoregressive import ARConfig, AutoregressiveTransformer
from edlm_engine.models.causal_lm import CausalLMScorer
from edlm_engine.models.dit import DiT, DiTConfig
from edlm_engine.models.energy import EnergyConfig, EnergyTransformer

__all__ = [
    "ARConfig",
    "AutoregressiveTransformer",
    "CausalLMScorer",
    "DiT",
    "DiTConfig",
    "EnergyConfig",
    "EnergyTransformer",
]
