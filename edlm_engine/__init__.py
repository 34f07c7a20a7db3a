"""Exact, fast sampling for energy-based diffusion language models (EDLM, arXiv 2410.21357)."""

from edlm_engine import drop_in, likelihood, metrics, ops, reference
from edlm_engine.config import GenerationConfig
from edlm_engine.denoiser import CallableDenoiser, Denoiser
from edlm_engine.energy import ARResidualEnergy, Energy
from edlm_engine.engine import Engine, Generation
from edlm_engine.schedule import LogLinearSchedule

__version__ = "0.1.0"

__all__ = [
    "ARResidualEnergy",
    "CallableDenoiser",
    "Denoiser",
    "Energy",
    "Engine",
    "Generation",
    "GenerationConfig",
    "LogLinearSchedule",
    "drop_in",
    "likelihood",
    "metrics",
    "ops",
    "reference",
]
