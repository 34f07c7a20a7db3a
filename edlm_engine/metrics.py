"""Quality of samples and of importance weights: the public path of `evaluation.metrics`."""

from edlm_engine.evaluation.metrics import (
    effective_sample_size,
    generative_perplexity,
    token_entropy,
)

__all__ = ["effective_sample_size", "generative_perplexity", "token_entropy"]
