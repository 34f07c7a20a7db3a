"""A checkpoint in another format, written in this project's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edlm_engine.checkpoints.files import TOKENIZER
from edlm_engine.checkpoints.hub import Source, locate
from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.native import save_model
from edlm_engine.checkpoints.registry import Request, find_format, is_energy, is_scorer
from edlm_engine.checkpoints.save import native_form


def convert(
    source: str | Path, target: str | Path, look: Source | None = None, **options: Any
) -> str:
    """Write the model at `source` to the folder `target`, and return what it is.

    That is "denoiser", "left to right" or "energy". A folder that holds denoiser/ and perhaps ar/
    and energy/ becomes such a folder. Weights keep their dtypes, and a tokenizer.json comes along.
    `look` says how to look for it, `options` are fields of `Request`. Raises ValueError, by name,
    for networks that are not this project's own, and for a target that is not empty.
    """
    root, target = locate(source, look), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} must be a new or empty folder")
    parts = {name: root / name for name in ("denoiser", "ar", "energy")}
    if not parts["denoiser"].is_dir():
        parts = {"": root}
    read = {
        name: find_format(place).load(place, Request(**options))
        for name, place in parts.items()
        if place.exists()
    }
    models = {name: native_form(loaded.model) for name, loaded in read.items()}
    for name, model in models.items():
        save_model(model, target / name)
    first = next(iter(read.values()))
    tokenizer = find_tokenizer(root) or first.tokenizer
    if tokenizer is not None:
        tokenizer.save(target / TOKENIZER)
    if is_energy(first.model):
        return "energy"
    return "left to right" if is_scorer(first.model) else "denoiser"
