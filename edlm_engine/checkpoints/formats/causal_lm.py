"""Any causal language model of transformers, a folder or a GGUF file: the model of an energy."""

from __future__ import annotations

from pathlib import Path

from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request, config_of
from edlm_engine.checkpoints.transformers_models import cast, known_to_transformers
from edlm_engine.models.causal_lm import CausalLMScorer, read_causal_lm


class CausalLanguageModel:
    name = "causal-lm"

    def matches(self, place: Path) -> bool:
        if place.is_file():
            return place.suffix == ".gguf"
        config = config_of(place)
        if not config:
            return any(place.glob("*.gguf"))
        return known_to_transformers(config, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")

    def load(self, place: Path, request: Request) -> Loaded:
        model = read_causal_lm(place)
        scorer = CausalLMScorer(model, model.config.bos_token_id)
        if request.meta:  # already read, and without its memory tied weights would count twice
            return Loaded(scorer, find_tokenizer(place))
        cast(model, request)
        return Loaded(scorer.to(request.device).requires_grad_(False), find_tokenizer(place))
