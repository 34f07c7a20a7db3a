"""A causal language model that `edlm train adapt` made a denoiser of."""

from __future__ import annotations

from pathlib import Path

import torch

from edlm_engine.checkpoints.adapted import is_adapted, load_adapted
from edlm_engine.checkpoints.registry import Loaded, Request


class Adapted:
    name = "adapted"

    def matches(self, place: Path) -> bool:
        return is_adapted(place)

    def load(self, place: Path, request: Request) -> Loaded:
        pair = load_adapted(
            place,
            base=request.base,
            with_ar=request.with_ar,
            device="cpu" if request.meta else request.device,  # its halves share their weights
            dtype=request.blocks or torch.float32,
            head_dtype=request.head or torch.float32,
        )
        return Loaded(pair.denoiser, pair.tokenizer, pair.ar)
