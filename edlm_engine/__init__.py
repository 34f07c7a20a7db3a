"""Exact, fast sampling for energy-based diffusion language models (EDLM, arXiv 2410.21357)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edlm_engine.version import __version__

if TYPE_CHECKING:
    from edlm_engine import arrays, drop_in, jobs, likelihood, metrics, ops, ray, reference
    from edlm_engine.energies.classifier import ClassifierEnergy
    from edlm_engine.energies.constraint import ConstraintEnergy, TokenCountEnergy
    from edlm_engine.energies.nce import NCEEnergy
    from edlm_engine.energies.protocol import Energy
    from edlm_engine.energies.residual import ARResidualEnergy
    from edlm_engine.energies.reward import RewardEnergy
    from edlm_engine.energies.sums import SumEnergy
    from edlm_engine.energies.tilted import tilted
    from edlm_engine.engine import Engine
    from edlm_engine.models.denoiser import CallableDenoiser, Denoiser
    from edlm_engine.sampling.config import GenerationConfig
    from edlm_engine.sampling.generation import Generation
    from edlm_engine.sampling.request import Request
    from edlm_engine.sampling.schedule import LogLinearSchedule
    from edlm_engine.sampling.session import Finished, Session, SessionFull

__all__ = [
    "ARResidualEnergy",
    "CallableDenoiser",
    "ClassifierEnergy",
    "ConstraintEnergy",
    "Denoiser",
    "Energy",
    "Engine",
    "Finished",
    "Generation",
    "GenerationConfig",
    "LogLinearSchedule",
    "NCEEnergy",
    "Request",
    "RewardEnergy",
    "Session",
    "SessionFull",
    "SumEnergy",
    "TokenCountEnergy",
    "arrays",
    "drop_in",
    "jobs",
    "likelihood",
    "metrics",
    "ops",
    "ray",
    "reference",
    "tilted",
]

# Where classes and functions lie; the other names are modules. Each is imported when first asked
# for, so that `edlm --help` does without torch and a generation without training and evaluation.
_HOMES = {
    "ARResidualEnergy": "edlm_engine.energies.residual",
    "CallableDenoiser": "edlm_engine.models.denoiser",
    "ClassifierEnergy": "edlm_engine.energies.classifier",
    "ConstraintEnergy": "edlm_engine.energies.constraint",
    "Denoiser": "edlm_engine.models.denoiser",
    "Energy": "edlm_engine.energies.protocol",
    "Engine": "edlm_engine.engine",
    "Finished": "edlm_engine.sampling.session",
    "Generation": "edlm_engine.sampling.generation",
    "GenerationConfig": "edlm_engine.sampling.config",
    "LogLinearSchedule": "edlm_engine.sampling.schedule",
    "NCEEnergy": "edlm_engine.energies.nce",
    "Request": "edlm_engine.sampling.request",
    "RewardEnergy": "edlm_engine.energies.reward",
    "Session": "edlm_engine.sampling.session",
    "SessionFull": "edlm_engine.sampling.session",
    "SumEnergy": "edlm_engine.energies.sums",
    "TokenCountEnergy": "edlm_engine.energies.constraint",
    "tilted": "edlm_engine.energies.tilted",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"edlm_engine.{name}")
    raise AttributeError(f"module 'edlm_engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
