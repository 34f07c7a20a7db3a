"""Any causal language model of transformers, a folder or a GGUF file: the model of an energy."""

from __future__ import annotations

from pathlib import Path

from torch import nn

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
        if request.device_map is not None:
            return Loaded(_spread(place, request), find_tokenizer(place))
        model = read_causal_lm(place)
        scorer = CausalLMScorer(model, model.config.bos_token_id)
        if request.meta:  # already read, and without its memory tied weights would count twice
            return Loaded(scorer, find_tokenizer(place))
        cast(model, request)
        return Loaded(scorer.to(request.device).requires_grad_(False), find_tokenizer(place))


def _spread(place: Path, request: Request) -> CausalLMScorer:
    """Its blocks where the device map says, and its head where the tokens are.

    What is offloaded can be cast only while it is read, so the head too is rounded to the dtype of
    the blocks.
    """
    model = read_causal_lm(place, dtype=request.blocks, device_map=request.device_map)
    linear = model.get_output_embeddings()
    if linear.weight.is_meta:
        raise ValueError(
            f"device_map must keep the output layer on a device, got {request.device_map!r}, "
            f"which offloads that of {place}"
        )
    scorer = CausalLMScorer(model, model.config.bos_token_id).requires_grad_(False)
    for name, part in list(linear.named_parameters()):  # a tied weight stays with the embedding
        moved = part.detach().to(request.device, request.head or part.dtype, copy=True)
        setattr(linear, name, nn.Parameter(moved, requires_grad=False))
    return scorer
