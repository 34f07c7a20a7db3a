"""The layout of this project: config.json with an "architecture", and model.safetensors."""

from __future__ import annotations

from pathlib import Path

from edlm_engine.checkpoints.dit_weights import finish
from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.native import load_model
from edlm_engine.checkpoints.registry import Loaded, Request, config_of


class Native:
    name = "native"

    def matches(self, place: Path) -> bool:
        return place.is_dir() and "architecture" in config_of(place)

    def load(self, place: Path, request: Request) -> Loaded:
        return Loaded(
            finish(load_model(place, device=request.device), request), find_tokenizer(place)
        )
