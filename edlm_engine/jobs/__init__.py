"""Many sequences, to Parquet files: by one process, by many, or by the workers of a Ray cluster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edlm_engine.jobs.job import Job, job_of
    from edlm_engine.jobs.run import run_job

__all__ = ["Job", "job_of", "run_job"]

_HOMES = {"Job": "job", "job_of": "job", "run_job": "run"}  # the options are read without torch


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"edlm_engine.jobs.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'edlm_engine.jobs' has no attribute {name!r}")
