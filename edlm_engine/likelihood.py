"""Bounds on likelihoods: the public path of some of `evaluation`."""

from edlm_engine.evaluation.held_out import HeldOutLikelihood, Rate, held_out_likelihood
from edlm_engine.evaluation.likelihood import log_partition_bounds, selection_gain

__all__ = [
    "HeldOutLikelihood",
    "Rate",
    "held_out_likelihood",
    "log_partition_bounds",
    "selection_gain",
]
