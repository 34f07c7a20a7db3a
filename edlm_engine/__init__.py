"""Exact, fast sampling for energy-based diffusion language models (EDLM, arXiv 2410.21357)."""

from edlm_engine import drop_in, likelihood, metrics, ops, reference
from edlm_engine.energies.protocol import Energy
from edlm_engine.energies.residual import ARResidualEnergy
from edlm_engine.engine import Engine
from edlm_engine.models.denoiser import CallableDenoiser, Denoiser
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.run import Generation
from edlm_engine.sampling.schedule import LogLinearSchedule

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
