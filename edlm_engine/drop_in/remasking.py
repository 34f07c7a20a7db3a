"""ReMDM's samplers: with what probabilities a step reveals masked tokens and masks shown ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edlm_engine.sampling.edlm_config import get

# As masks once revealed stay so, all reveals of these may be planned beforehand.
PLANNED = (None, "mdlm")
SAMPLERS = (
    "mdlm",
    "forward-backward",
    "remdm-cap",
    "remdm-rescale",
    "remdm-conf",
    "remdm-loop",
)


def step_rates(
    sampling: Any, t: float, s: float, confidence: Tensor
) -> tuple[float, Tensor | float]:
    """(reveal, remask) of a step from time t to s < t, as ReMDM's code has them with alpha = 1 - t.

    sampling: the node with `sampler`, `eta`, `t_on`, `t_off` and `alpha_on`. confidence [B, L]:
    minus the probability with which a shown token was drawn, -inf where masked; of "remdm-conf"
    alone, whose remask is a tensor [B, L]. Weights that come out below 0 are 0, as in a race.
    """
    sampler, eta = get(sampling, "sampler"), get(sampling, "eta", 0.0)
    before, after = 1 - t, 1 - s  # alpha_t and alpha_s
    most = min(1.0, (1 - after) / before) if before > 0 else 1.0
    if sampler == "remdm-loop":
        return _loop_rates(sampling, t, s, eta)
    if sampler == "remdm-conf":
        share = torch.softmax(confidence, dim=-1).nan_to_num(0.0)  # NaN where all are masked
        return _clipped((after - before) / (1 - before)), share * most
    if sampler == "forward-backward":
        remask = (after - before) / before if before > 0 else 1.0
    elif sampler == "remdm-cap":
        remask = min(eta, (1 - after) / before) if before > 0 else eta
    elif sampler == "remdm-rescale":
        remask = eta * most
    else:
        raise ValueError(
            f"config.sampling.sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}"
        )
    reveal = (after - (1 - remask) * before) / (1 - before)
    return _clipped(reveal), _clipped(remask)


def _loop_rates(sampling: Any, t: float, s: float, eta: float) -> tuple[float, float]:
    """MDLM down to t_on, then remasking at a constant alpha, then MDLM from t_off on."""
    on, off = get(sampling, "t_on", 0.0), get(sampling, "t_off", 0.0)
    alpha = get(sampling, "alpha_on", 0.0)
    if t > on:
        masked = [1 - (1 - time) * alpha / (1 - on) for time in (t, s)]
        return _clipped(1 - masked[1] / masked[0]), 0.0
    if t <= off:
        return _clipped(1 - s / t), 0.0
    return _clipped(alpha * eta / (1 - alpha)), _clipped(eta)


def _clipped(probability: float) -> float:
    return min(1.0, max(0.0, probability))
