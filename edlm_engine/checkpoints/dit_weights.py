"""The networks of MDLM and EDLM from tensors of their names, which are ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edlm_engine.checkpoints.registry import Request
from edlm_engine.checkpoints.weights import REMEDY, check_names, check_shapes
from edlm_engine.models import (
    ARConfig,
    AutoregressiveTransformer,
    DiT,
    DiTConfig,
    EnergyConfig,
    EnergyTransformer,
)
from edlm_engine.models.layers import TIED_HEAD, Rotary, cast_parameters

Model = DiT | AutoregressiveTransformer | EnergyTransformer

PREFIXES = ("backbone.", "ebm.")
FREQUENCIES = "rotary_emb.inv_freq"
EMBEDDING = "vocab_embed.embedding"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What tensors alone do not tell; None is read off them."""

    n_heads: int
    length: int
    hidden_dim: int | None = None
    n_blocks: int | None = None
    vocab_size: int | None = None
    time_conditioning: bool = False
    tied: bool = False


def strip_prefix(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """Names without one of `PREFIXES`, which all of them have or none, and what was taken off."""
    for prefix in PREFIXES:
        others = {name for name in tensors if not name.startswith(prefix)}
        if len(others) < len(tensors):
            check_names("weights", set(), others, path, f"all must start with {prefix!r}; {REMEDY}")
            return {name.removeprefix(prefix): t for name, t in tensors.items()}, prefix
    return tensors, ""


def build(
    tensors: dict[str, Tensor], path: Path, sizes: Sizes, mask_id: int | None, prefix: str = ""
) -> Model:
    """The model that the tensors are, in their dtypes: see `empty`.

    mask_id: the mask token, None for the last row. prefix: of the names in the file, for messages.
    Raises ValueError naming each tensor that is missing, unexpected or misshapen.
    """
    model = empty(tensors, path, sizes, mask_id)
    rotary = Rotary(model.config.hidden_dim // model.config.n_heads)
    tied = {TIED_HEAD} if sizes.tied else set()
    wanted = {prefix + n: p.shape for n, p in model.state_dict().items() if n not in tied}
    if FREQUENCIES not in tensors:  # a buffer, which averaged weights do not hold
        del wanted[prefix + FREQUENCIES]
    found = {prefix + name: tensor for name, tensor in tensors.items()}
    check_names("weights", set(wanted), set(found), path, REMEDY)
    check_shapes(wanted, found, path, REMEDY)
    frequencies = tensors.get(FREQUENCIES, rotary.inv_freq)
    known = not frequencies.is_meta
    if known and not torch.allclose(frequencies.float(), rotary.inv_freq, rtol=1e-2):
        raise ValueError(f"{path}: {prefix}{FREQUENCIES} must be those of base 10000")
    model.load_state_dict(tensors, strict=False, assign=True)
    model.rotary_emb = rotary
    model.tie_head()
    return model.eval()


def empty(tensors: dict[str, Tensor], path: Path, sizes: Sizes, mask_id: int | None) -> Model:
    """The model without memory for its weights.

    Without adaLN it is left to right; with an energy head, the network of an NCE energy.
    """
    if EMBEDDING not in tensors or tensors[EMBEDDING].dim() != 2:
        check_names("weights", {EMBEDDING}, set(tensors) - {EMBEDDING}, path, REMEDY)
    rows, width = tensors[EMBEDDING].shape
    numbers = {int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in tensors) if m}
    widen, cond = tensors.get("blocks.0.mlp.0.weight"), tensors.get("sigma_map.mlp.2.weight")
    vocab_size = sizes.vocab_size or rows
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "length": sizes.length,
        "hidden_dim": sizes.hidden_dim or width,
        "n_blocks": sizes.n_blocks or len(numbers) or 1,
        "n_heads": sizes.n_heads,
        "mlp_ratio": 4 if widen is None else max(1, len(widen) // width),
        "tie_word_embeddings": sizes.tied,
    }
    mask_id = vocab_size - 1 if mask_id is None else mask_id
    causal = not any("adaLN" in name or name.startswith("sigma_map.") for name in tensors)
    try:
        with torch.device("meta"):
            if causal:
                return AutoregressiveTransformer(ARConfig(**common, forbidden_id=mask_id))
            time = {"time_conditioning": sizes.time_conditioning}
            common |= {"mask_id": mask_id, "cond_dim": 128 if cond is None else len(cond), **time}
            if any(name.startswith("energy_head.") for name in tensors):
                return EnergyTransformer(EnergyConfig(**common | {"tie_word_embeddings": False}))
            return DiT(DiTConfig(**common))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def finish(model: Model, request: Request):
    """Folded if wanted, in the dtypes and on the device that are wanted."""
    done: Any = model
    foldable = isinstance(model, DiT | EnergyTransformer) and not model.config.time_conditioning
    if foldable and request.fold:
        done = done.float().folded()  # 16-bit products would round what is folded
    if request.head is not None:
        for part in done.children():
            if part is not done.blocks:
                cast_parameters(part, request.head)
    if request.blocks is not None:
        cast_parameters(done.blocks, request.blocks)
    return done.to(request.device).eval()
