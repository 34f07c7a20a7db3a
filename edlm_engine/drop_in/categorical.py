"""`sample_categorical`, and its way into modules that have a function of that job."""

from __future__ import annotations

import sys
from types import ModuleType

import torch
from torch import Tensor

from edlm_engine import ops

NAMES = ("_sample_categorical", "sample_categorical")
"""What the function is called in MDLM's code and in DUO's."""


def sample_categorical(
    categorical_probs: Tensor,
    num_samples: int = 1,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw from the categoricals in the last dimension of categorical_probs [B, ..., V].

    Returns int64 [num_samples * B, ...]; sample j of row b is at j * B + b, the layout of
    `categorical_probs.repeat(num_samples, ...)`. Probabilities need not be normalised. Frequencies
    are exact into the far tail, and a token of probability 0 is never drawn. float32, bfloat16 and
    float16 are read as they are, once; a float64 row is divided by its largest number and rounded
    to float32 first.

    One 64-bit number is taken per call from `generator`, on any device, or without one from torch's
    global generator of the CPU, whatever the device of the probabilities.

    Raises ValueError for num_samples < 1, and on the CPU RuntimeError for rows that hold NaN, a
    negative number or +inf, or nothing but 0.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be >= 1, got {num_samples}")
    *batch, vocab = categorical_probs.shape
    weights = categorical_probs.reshape(-1, vocab)
    if weights.dtype == torch.float64:
        largest = weights.amax(dim=1, keepdim=True)
        weights = (weights / largest.clamp(min=torch.finfo(torch.float64).tiny)).float()
    elif vocab > 1 and weights.stride(1) != 1:
        weights = weights.contiguous()
    device = None if generator is None else generator.device
    seed = torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=device)
    keys = ops.stream_keys(
        seed.to(weights.device), torch.arange(len(weights), device=weights.device)
    )
    tokens, _ = ops.sample_weights(weights, keys, num_samples)
    if num_samples == 1:
        return tokens.reshape(batch)
    first, *rest = batch or (1,)
    return tokens.T.reshape(num_samples * first, *rest)


def categorical_owners(module: object) -> list[tuple[object, str]]:
    """Where a module's own such functions are: (owner, name).

    On the object itself (or the Python module, if it is one), else in the Python modules that
    define its class and base classes. Raises ValueError if there are none.
    """
    places: list[object] = [module]
    if not isinstance(module, ModuleType) and not any(hasattr(module, name) for name in NAMES):
        places = list(dict.fromkeys(sys.modules[base.__module__] for base in type(module).__mro__))
    owners = [(place, name) for place in places for name in NAMES if hasattr(place, name)]
    if not owners:
        raise ValueError(
            f"module must have a function {' or '.join(NAMES)}, itself or where its class is "
            f"defined, got {type(module).__name__}"
        )
    return owners
