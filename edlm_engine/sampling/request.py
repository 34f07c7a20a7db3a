"""What is asked for, checked: one sequence of a session, or the sequences of a generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from edlm_engine.energies.protocol import Energy
from edlm_engine.execution.graphs import ModelGraphs
from edlm_engine.execution.memory import require_memory
from edlm_engine.models.denoiser import Denoiser, device_of
from edlm_engine.sampling.canvas import Chat, Tokens, check_canvas, known_tokens
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.law import bias_of
from edlm_engine.sampling.schedule import LogLinearSchedule


class Sampler(Protocol):
    """What samples: an `Engine`, or anything with its models."""

    denoiser: Denoiser
    energy: Energy | Callable[..., Tensor] | None
    tokenizer: Any
    schedule: LogLinearSchedule

    def model_graphs(self) -> ModelGraphs | None:
        """The CUDA graphs of the models, if they are to be used."""
        ...


@dataclass(frozen=True)
class Request:
    """One sequence for a session, each field as `Engine.generate` takes it for a batch of one.

    config: how to sample it; a dict of some fields will do.
    seed: an int, or a list of one: the sequence is that of `generate(1, seed=seed, ...)`.
    prompt, suffix: text, token ids, or for a prompt a chat. canvas: [1, L] int64.
    """

    config: GenerationConfig | Mapping[str, Any] | None = None
    seed: int | Sequence[int] | Tensor = 0
    prompt: Tokens | Chat | None = None
    suffix: Tokens | None = None
    canvas: Tensor | None = None


def as_request(request: Request | Mapping[str, Any]) -> Request:
    """What a session was given; TypeError if it is no request, ValueError for unknown fields."""
    if isinstance(request, Request):
        return request
    if not isinstance(request, Mapping):
        raise TypeError(f"request must be a Request or a dict, got {request!r}")
    known = [field.name for field in fields(Request)]
    unknown = sorted(str(name) for name in request if name not in known)
    if unknown:
        raise ValueError(f"request has no field {', '.join(unknown)}; it has {', '.join(known)}")
    return Request(**request)


def first_xt(
    sampler: Sampler,
    batch_size: int,
    config: GenerationConfig,
    prompt: Tokens | Chat | Sequence[Chat] | None,
    suffix: Tokens | None,
    canvas: Tensor | None,
) -> Tensor:
    """[B, L] int64 on the CPU: what is known, and the mask elsewhere.

    Raises ValueError for what the models cannot do, MemoryError for what the device cannot hold.
    """
    mask_id, vocab_size = sampler.denoiser.mask_id, sampler.denoiser.vocab_size
    if canvas is not None:
        if prompt is not None or suffix is not None:
            raise ValueError("canvas must be given alone, got a prompt or suffix as well")
        if config.new_tokens is not None:
            raise ValueError(f"canvas has its length, got new_tokens {config.new_tokens} as well")
        length = length_of(sampler, config, 0)
        _require_room(sampler, batch_size, length, config)
        return check_canvas(canvas, batch_size, length, vocab_size)
    known = known_tokens(
        prompt,
        suffix,
        batch_size,
        mask_id=mask_id,
        vocab_size=vocab_size,
        tokenizer=sampler.tokenizer,
    )
    length = length_of(sampler, config, known.most)
    _require_room(sampler, batch_size, length, config)
    return known.canvas(batch_size, length, mask_id)


def length_of(sampler: Sampler, config: GenerationConfig, known: int) -> int:
    """L: as configured, of sequences with that many known tokens, or the denoiser's own; ValueError
    if the models do not go as far."""
    denoiser, energy = sampler.denoiser, sampler.energy
    wanted = config.length if config.new_tokens is None else known + config.new_tokens
    if wanted is None and getattr(denoiser, "any_length", False):
        raise ValueError(
            f"length or new_tokens must be given: this denoiser has no length of its own, it takes "
            f"up to {denoiser.length} tokens"
        )
    # An NCE energy has a model too, but none that reads from left to right.
    with_ar = hasattr(energy, "model") and getattr(energy, "residual", False)
    if config.correction == "speculative" and not with_ar:
        raise ValueError(
            "correction 'speculative' needs an energy with an autoregressive model, as "
            f"ARResidualEnergy has, got {type(energy).__name__}"
        )
    bias_of(config, denoiser.vocab_size, torch.device("cpu"))  # refuses what it cannot be
    if config.eos_id is not None and (
        config.eos_id >= denoiser.vocab_size or config.eos_id == denoiser.mask_id
    ):
        raise ValueError(
            f"eos_id must be a token below {denoiser.vocab_size} and not the mask "
            f"{denoiser.mask_id}, got {config.eos_id}"
        )
    length = wanted or denoiser.length
    longest = min(denoiser.length, getattr(energy, "length", denoiser.length))
    if length > longest:
        of = "" if config.new_tokens is None else f", {known} known tokens and new_tokens"
        raise ValueError(f"length must be <= {longest}, the models' own, got {length}{of}")
    return length


def _require_room(sampler: Sampler, batch_size: int, length: int, config: GenerationConfig) -> None:
    """MemoryError unless the least that the sequences hold at one time fits the device."""
    denoiser: Any = sampler.denoiser
    width, item = denoiser.vocab_size, 2  # logits, of 16 bits at least
    if hasattr(denoiser, "hidden"):
        head, _ = denoiser.head
        width, item = head.shape[1], head.element_size()
    candidates = 1 if sampler.energy is None else config.num_candidates
    at_once = 1 if config.batch_invariant else batch_size
    # Tokens before and after, the plan, and the candidates are int64, the times float64 twice.
    tokens = 8 * batch_size * length * (3 + candidates)
    needed = tokens + at_once * length * width * item + 16 * (config.steps or 0)
    what = f"batch_size {batch_size} at length {length} with steps {config.steps}"
    require_memory(what, needed, device_of(denoiser))
