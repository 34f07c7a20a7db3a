"""The networks: a masked-diffusion denoiser and left-to-right scorers."""

from edlm_engine.models.autoregressive import ARConfig, AutoregressiveTransformer
from edlm_engine.models.causal_lm import CausalLMScorer
from edlm_engine.models.dit import DiT, DiTConfig

__all__ = ["ARConfig", "AutoregressiveTransformer", "CausalLMScorer", "DiT", "DiTConfig"]
