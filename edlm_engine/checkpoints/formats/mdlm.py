"""Networks of the MDLM family from safetensors or torch files with a config.json beside them.

Two configurations: that of the hub's MDLM and BD3LM classes (names under "backbone."), and a bare
one of the model alone (`hidden_size`, `n_blocks`, ..., as in the baselines of BlockGen), where the
keys tell whether the model is a denoiser or left to right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edlm_engine.checkpoints.dit_weights import Sizes, build, finish, strip_prefix
from edlm_engine.checkpoints.files import CONFIG
from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request, config_of
from edlm_engine.checkpoints.weights import read_tensors, require_weight_file, weight_file

HUB_TYPES = ("mdlm", "bd3lm")
BARE = {"hidden_size", "n_blocks", "n_heads", "length"}
NO_MASK = "which has no mask: only masked diffusion is sampled here"
REFUSED = {
    "duo": f"uniform-state diffusion (DUO), {NO_MASK}",
    "duo_base": f"uniform-state diffusion (DUO), {NO_MASK}",
    "uniform": f"uniform-state diffusion, {NO_MASK}",
    "udlm": f"uniform-state diffusion (UDLM), {NO_MASK}",
    "sedd": "score-entropy diffusion (SEDD), whose output is a score and not a distribution",
    "absorb": "block diffusion (BlockGen), which attends in blocks: only models that see whole "
    "sequences are sampled here",
}


class MDLM:
    name = "mdlm"

    def matches(self, place: Path) -> bool:
        config = config_of(place)
        kind = str(config.get("model_type", "")).lower()
        bare = set(config) >= BARE and not {"model_type", "architecture"} & set(config)
        return (kind in (*HUB_TYPES, *REFUSED) or bare) and weight_file(place) is not None

    def load(self, place: Path, request: Request) -> Loaded:
        path, config = require_weight_file(place), config_of(place)
        # A bare configuration does not say what the model is, the name of its folder does.
        name = config.get("model_type") or (place if place.is_dir() else place.parent).name
        refuse(place, name)
        _refuse_blocks(config, place)
        tensors, prefix = strip_prefix(read_tensors(place, meta=request.meta), path)
        mask_id = config.get("mask_id", config.get("mask_token_id"))
        mask_id = mask_id if request.mask_id is None else request.mask_id
        model = build(tensors, path, _sizes(config, path.parent / CONFIG), mask_id, prefix)
        return Loaded(finish(model, request), find_tokenizer(place))


def refuse(place: Path, *names: object) -> None:
    """Raise ValueError, by name, for models of the family that are no masked diffusion."""
    for name in names:
        if str(name).lower() in REFUSED:
            raise ValueError(f"{place} is {name}: {REFUSED[str(name).lower()]}")


def _refuse_blocks(config: dict[str, Any], place: Path) -> None:
    whole = config.get("model_length")
    if config.get("block_size", whole) not in (whole, 1) or config.get("cross_attn"):
        raise ValueError(f"{place} is bd3lm: {REFUSED['absorb'].replace('BlockGen', 'BD3LM')}")


def _sizes(config: dict[str, Any], path: Path) -> Sizes:
    hub = "model_type" in config
    names = ("model_length", "hidden_dim") if hub else ("length", "hidden_size")
    missing = [
        name for name in ("n_heads", *names, "n_blocks") if type(config.get(name)) is not int
    ]
    if missing:
        raise ValueError(f"{path} must have integers {missing}")
    length, width = (config[name] for name in names)
    return Sizes(
        n_heads=config["n_heads"],
        length=length,
        hidden_dim=width,
        n_blocks=config["n_blocks"],
        vocab_size=config.get("vocab_size"),
        time_conditioning=bool(config.get("time_conditioning", False)),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
