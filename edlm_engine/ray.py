"""Many machines by Ray (`pip install 'edlm_engine[ray]'`), which is imported only when used."""

from edlm_engine.jobs.on_ray import generate
from edlm_engine.serving.on_ray import application

__all__ = ["application", "generate"]
