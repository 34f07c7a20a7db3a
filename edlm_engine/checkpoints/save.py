"""A loaded pair to disk, in the layout of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edlm_engine.checkpoints.files import TOKENIZER
from edlm_engine.checkpoints.native import ARCHITECTURES, save_model
from edlm_engine.checkpoints.registry import is_energy
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.models import CausalLMScorer
from edlm_engine.models.dit import FoldedDiT
from edlm_engine.models.energy import FoldedEnergy
from edlm_engine.models.unfold import unfolded

OWN = tuple(cls for _, cls in ARCHITECTURES.values())


def native_form(model: Any) -> Any:
    """The model as one that `save_model` writes; ValueError, by name, for a network of others."""
    if isinstance(model, FoldedDiT | FoldedEnergy):
        return unfolded(model)
    if type(model) in OWN:
        return model
    inner = type(getattr(model, "model", model)).__name__
    raise ValueError(
        f"{inner} is not a network of this project's own layout ({type(model).__name__}): "
        "keep the files it was read from"
    )


def save_pair(folder: str | Path, denoiser: Any, energy: Any = None, tokenizer: Any = None) -> None:
    """Write denoiser/, ar/ or energy/, and tokenizer.json, as `load_bundle` reads them.

    energy: the model behind it, left to right or of an NCE energy, or None. One of transformers is
    written as that library does. Raises ValueError, by name, for models that have no such layout,
    before anything is written.
    """
    folder = Path(folder)
    own = native_form(denoiser)
    kept = energy is None or isinstance(energy, CausalLMScorer)
    scorer = energy if kept else native_form(energy)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise ValueError(
            f"tokenizer must be a Tokenizer to be saved, got {type(tokenizer).__name__}"
        )
    save_model(own, folder / "denoiser")
    if isinstance(scorer, CausalLMScorer):
        scorer.model.save_pretrained(folder / "ar")
    elif scorer is not None:
        save_model(scorer, folder / ("energy" if is_energy(scorer) else "ar"))
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
