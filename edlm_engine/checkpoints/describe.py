"""What a model on disk is, from its names and headers: checked as if loaded, without the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edlm_engine.checkpoints.bundle import beside
from edlm_engine.checkpoints.hub import Source, locate
from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Format, Request, find_format, is_energy, is_scorer

GIB = 2**30


def describe(name: str | Path, source: Source | None = None, **options: Any) -> dict[str, Any]:
    """Format, kind, sizes, mask, tokenizer, memory and energies of a place or hub id, for JSON.

    options: fields of `Request`. What keeps the model from being loaded stands under "missing". No
    weights are read from safetensors, only headers. Raises FileNotFoundError and ValueError for
    places that hold no model in a known format.
    """
    root = locate(name, source)
    place = root / "denoiser" if (root / "denoiser").is_dir() else root
    format = find_format(place)
    facts: dict[str, Any] = {"place": str(place), "format": format.name}
    try:
        loaded = format.load(place, Request(device="meta", **options))
    except (ValueError, FileNotFoundError, ImportError) as error:
        return facts | {"missing": str(error)}
    facts |= _model(loaded.model) | {"missing": "nothing"}
    tokenizer = loaded.tokenizer or find_tokenizer(root)
    facts["tokenizer"] = "none" if tokenizer is None else f"{tokenizer.vocab_size} tokens"
    if facts["kind"] == "denoiser":
        facts["energies"] = _energies(root, format, _largest_drawn(loaded.model))
    return facts


def _kind(model: Any) -> str:
    if is_energy(model):
        return "NCE energy"
    return "left to right" if is_scorer(model) else "denoiser"


def _model(model: Any) -> dict[str, Any]:
    parameters = {id(p): p for p in model.parameters()}.values()
    number = sum(p.numel() for p in parameters)
    stored = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    facts: dict[str, Any] = {
        "kind": _kind(model),
        "class": type(model).__name__,
        "parameters": number,
        "stored as": ", ".join(stored),
        "vocabulary": model.vocab_size,
        "length": model.length,
    }
    if is_scorer(model):
        facts["BOS"] = model.bos_id
    else:
        facts["mask"] = model.mask_id
        facts["never drawn"] = len(getattr(model, "never_drawn", ()))
    sizes = {"float32": 4, "bfloat16": 2}
    facts["memory of the weights"] = ", ".join(
        f"{number * size / GIB:.2f} GiB in {dtype}" for dtype, size in sizes.items()
    )
    return facts


def _largest_drawn(denoiser: Any) -> int:
    never = {denoiser.mask_id, *getattr(denoiser, "never_drawn", ())}
    return max(i for i in range(denoiser.vocab_size) if i not in never)


def _energies(root: Path, format: Format, largest: int) -> dict[str, str]:
    """What an energy must know, and whether the models beside the denoiser do."""
    facts = {"needed": f"a left-to-right model of the same tokens, 0 to {largest}"}
    places = [*beside(root, format), *beside(root, format, "energy")]
    for place in [*places, root]:  # a checkpoint of EDLM holds its energy itself
        if place.exists():
            try:
                model = find_format(place).load(place, Request(device="meta", energy=True)).model
                if place == root and not is_energy(model):
                    continue
                known = model.vocab_size
                facts[str(place)] = "fits" if known > largest else f"knows {known} tokens only"
            except (ValueError, FileNotFoundError, ImportError) as error:
                facts[str(place)] = str(error)
    return facts
