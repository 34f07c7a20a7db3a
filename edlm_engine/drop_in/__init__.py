"""Exact sampling inside existing MDLM-family code, without changing it.

`sample_categorical` replaces the function of that job; `accelerate` the whole sampling loop of a
module of MDLM, EDLM, ReMDM or DUO.
"""

from edlm_engine.drop_in.accelerate import Acceleration, accelerate
from edlm_engine.drop_in.categorical import sample_categorical

__all__ = ["Acceleration", "accelerate", "sample_categorical"]
