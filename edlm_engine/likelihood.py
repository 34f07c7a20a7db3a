"""Bounds on the log-partition function: the public path of `evaluation.likelihood`."""

from edlm_engine.evaluation.likelihood import log_partition_bounds

__all__ = ["log_partition_bounds"]
