"""What a sequence holds while it runs: an estimate in bytes, for the admission of requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from edlm_engine.execution.memory import available_bytes
from edlm_engine.models.denoiser import device_of
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.request import Sampler

# Activations of a transformer at a token, in multiples of its width: the residual stream, queries,
# keys and values, and four widths within the MLP, some of them twice.
WIDTHS = 20
WORKSPACE = 64 << 20  # of the fused heads, once
FLOAT, INT = 4, 8


class Need(NamedTuple):
    """Bytes of one sequence. `during` counts once for all those that models see one at a time."""

    held: int  # between steps: tokens, candidates, statistics, caches
    during: int  # within a step: activations, draws, logits
    alone: bool  # models see it by itself (`batch_invariant`)


def need_of(sampler: Sampler, config: GenerationConfig, length: int) -> Need:
    """What a sequence of that length needs: rows x K x L of tokens and draws, the denoiser's
    activations (or logits [L, V] where it has no head of its own), those of the energy's model for
    K candidates, and the keys and values that a left-to-right model keeps."""
    energy: Any = sampler.energy
    candidates = 1 if energy is None else config.num_candidates
    steps = min(config.steps or length, 10 * length)
    drawn = candidates * length
    held = length * (5 * INT + 3) + drawn * INT + 2 * FLOAT * steps
    during = drawn * (INT + 2 * FLOAT) + _model_bytes(sampler.denoiser, length)
    if config.guidance != 0:
        during += _model_bytes(sampler.denoiser, length)
    if config.record:
        held += length * (INT + 2 * FLOAT) + steps * (3 * FLOAT * candidates + INT)
    if config.correction in ("smc", "gibbs"):  # every candidate is a sequence of its own
        held += drawn * INT
        during += (candidates - 1) * _model_bytes(sampler.denoiser, length)
    for model in _models(energy):
        most = getattr(energy, "max_tokens", drawn)  # of a call, whatever the batch
        during += _model_bytes(model, min(drawn, max(most, length)))
        if config.correction == "speculative":
            held += _cache_bytes(model, length)
    return Need(held, during, config.batch_invariant)


def total(needs: Iterable[Need]) -> int:
    """What sequences need that run together."""
    held = during = alone = 0
    for need in needs:
        held += need.held
        if need.alone:
            alone = max(alone, need.during)
        else:
            during += need.during
    return WORKSPACE + held + max(during, alone)


def default_budget(sampler: Sampler) -> int | None:
    """Half of what the device has left; None where the system does not tell."""
    left = available_bytes(device_of(sampler.denoiser))
    return None if left is None else left // 2


def _models(energy: Any) -> list[Any]:
    parts = getattr(energy, "parts", (energy,))
    return [part.model for part in parts if hasattr(part, "model")]


def _model_bytes(model: Any, tokens: int) -> int:
    """Of a call on so many tokens."""
    head = getattr(model, "head", None)
    if head is None:
        return tokens * getattr(model, "vocab_size", 1) * FLOAT
    return tokens * WIDTHS * head[0].shape[1] * FLOAT


def _cache_bytes(model: Any, length: int) -> int:
    config = getattr(model, "config", None)
    names = ("n_blocks", "num_hidden_layers", "n_layer")
    layers = next((getattr(config, name) for name in names if hasattr(config, name)), 32)
    head = getattr(model, "head", None)
    return 0 if head is None else 2 * layers * length * head[0].shape[1] * FLOAT
