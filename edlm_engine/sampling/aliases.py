"""The names that other libraries give to fields of a `GenerationConfig`, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

from edlm_engine.sampling.edlm_config import NOISE_REMOVAL

# Their words for orders. LLaDA's "random" reveals as many tokens in each step, "ancestral" as many
# on average; both in random places.
ORDER_NAMES = {
    "random": "ancestral",
    "origin": "ancestral",
    "low_confidence": "confidence",
    "low_confidence_static": "confidence",
    "maskgit_plus": "confidence",
    "topk_margin": "margin",
    "entropy": "entropy",
    "entropy_bounded": "entropy_bounded",
    "low_confidence_dynamic": "threshold",
    "confidence_threshold": "threshold",
    "sequential": "leftmost",
}


def _same(name: str, value: Any) -> Any:
    return value


def _order(name: str, value: Any) -> Any:
    return _one_of(name, value, ORDER_NAMES)


def _final(name: str, value: Any) -> Any:
    return _one_of(name, value, NOISE_REMOVAL)


def _one_of(name: str, value: Any, names: Mapping[Any, str]) -> str:
    if isinstance(value, (str, bool)) and value in names:
        return names[value]
    raise ValueError(f"{name} must be one of {', '.join(map(str, names))}, got {value!r}")


def _guidance(name: str, value: Any) -> Any:
    """Where 1 is no guidance, as in transformers and diffusers."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value) - 1


# Name: the field it stands for, and how its value is read.
ALIASES: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    # diffusers, llama.cpp, vLLM and Gemma
    "num_inference_steps": ("steps", _same),
    "diffusion_steps": ("steps", _same),
    "sampling_steps": ("steps", _same),
    "denoising_steps": ("steps", _same),
    "max_denoising_steps": ("steps", _same),
    # EDLM and its relatives
    "is_size": ("num_candidates", _same),
    "is_temp": ("energy_temperature", _same),
    "noise_removal": ("final", _final),
    "nucleus_p": ("top_p", _same),
    "p_nucleus": ("top_p", _same),
    "eta": ("remask", _same),
    # LLaDA, Dream and who serves them
    "block_size": ("block_length", _same),
    "remasking": ("order", _order),
    "remasking_strategy": ("order", _order),
    "unmasking_strategy": ("order", _order),
    "alg": ("order", _order),
    "confidence_threshold": ("threshold", _same),
    "cfg_scale": ("guidance", _same),
    # transformers
    "guidance_scale": ("guidance", _guidance),
    "gen_length": ("new_tokens", _same),
    "max_new_tokens": ("new_tokens", _same),
    "max_length": ("length", _same),
    "eos_token_id": ("eos_id", _same),
    "suppress_tokens": ("forbidden_tokens", _same),
}
# EDLM's window is two fields: its lower and its upper end.
WINDOW_ENDS = ("is_end", "is_start")


def named_fields(values: Mapping[Any, Any], known: Sequence[str]) -> dict[str, Any]:
    """`values` by the names of fields, which are `known`.

    Raises ValueError for names that are neither fields nor in the table, with the nearest ones that
    are; for two names of one field; and for a value that has no meaning here.
    """
    unknown = sorted(str(name) for name in values if name not in (*known, *ALIASES, *WINDOW_ENDS))
    if unknown:
        named = ", ".join(_with_nearest(name, known) for name in unknown)
        raise ValueError(f"config has no field {named}; it has {', '.join(known)}")
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in _with_window(values).items():
        field, read = ALIASES.get(name, (name, _same))
        if field in fields:
            raise ValueError(f"config must not have both {names[field]} and {name}: one is {field}")
        fields[field], names[field] = read(name, value), name
    return fields


def _with_window(values: Mapping[str, Any]) -> dict[str, Any]:
    ends = [name for name in WINDOW_ENDS if name in values]
    if not ends:
        return dict(values)
    if len(ends) == 1 or "window" in values:
        raise ValueError("config must have both is_start and is_end, and no window beside them")
    rest = {name: value for name, value in values.items() if name not in WINDOW_ENDS}
    return rest | {"window": tuple(values[name] for name in WINDOW_ENDS)}


def _with_nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, [*known, *ALIASES], n=2)
    return f"{name} (nearest: {' or '.join(near)})" if near else name
