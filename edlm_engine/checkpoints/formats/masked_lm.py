"""Any masked language model whose class ships in transformers: BERT, RoBERTa, ModernBERT, ESM-2.

The tokenizer tells the mask and the special tokens, which are never drawn; the tokens that it puts
around a text are put around what is generated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edlm_engine.checkpoints.hub_tokenizer import HubTokenizer, find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request, config_of
from edlm_engine.checkpoints.transformers_models import (
    known_to_transformers,
    mask_token,
    require_transformers,
    stored_dtype,
    unused_ids,
)
from edlm_engine.checkpoints.weights import (
    REMEDY,
    check_names,
    check_shapes,
    read_tensors,
    require_weight_file,
    weight_file,
)
from edlm_engine.models.causal_lm import quietly
from edlm_engine.models.layers import cast_parameters
from edlm_engine.models.masked_lm import MaskedLM, MaskedLMWithHead, with_head

ENDING = "ForMaskedLM"
# Of the encoder's other uses, or of its pretraining: stored in many files and not needed here.
OLD = re.compile(r"LayerNorm\.(gamma|beta)$")  # of the first files of BERT
UNUSED = (".pooler.", ".seq_relationship.", ".contact_head.", ".position_ids", ".token_type_ids")


class MaskedLanguageModel:
    name = "masked-lm"

    def matches(self, place: Path) -> bool:
        config = config_of(place)
        named = config.get("architectures") or []
        return (
            any(str(name).endswith((ENDING, "ForPreTraining")) for name in named)
            and known_to_transformers(config, "MODEL_FOR_MASKED_LM_MAPPING_NAMES")
            and weight_file(place) is not None
        )

    def load(self, place: Path, request: Request) -> Loaded:
        tokenizer = find_tokenizer(place)
        mask_id = mask_token(request, config_of(place), tokenizer, place)
        model = _read(place, request.meta)
        special = () if tokenizer is None else tokenizer.special_ids
        denoiser = MaskedLM(
            model,
            mask_id=mask_id,
            never_drawn=unused_ids(model.config.vocab_size, tokenizer, special),
            around=_around(tokenizer),
        )
        if request.meta:
            return Loaded(denoiser, tokenizer)
        denoiser = with_head(denoiser)
        # The head first: it may share its weight with the embedding, which goes with the blocks.
        if request.head is not None and isinstance(denoiser, MaskedLMWithHead):
            denoiser.decoder = _own(denoiser.decoder, request)
        if request.blocks is not None:
            cast_parameters(denoiser.model, request.blocks)
        return Loaded(denoiser.to(request.device).requires_grad_(False), tokenizer)


def _own(decoder: nn.Linear, request: Request) -> nn.Linear:
    """The head in its dtype, with a weight that no embedding shares."""
    for name in ("weight", "bias"):
        value = getattr(decoder, name).detach().to(request.head, copy=True)
        setattr(decoder, name, nn.Parameter(value, requires_grad=False))
    return decoder


def _around(tokenizer: HubTokenizer | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if tokenizer is None:
        return (), ()
    special = tokenizer.special
    before = special.get("cls_token", special.get("bos_token"))
    after = special.get("sep_token", special.get("eos_token"))
    return (() if before is None else (before,)), (() if after is None else (after,))


def _read(place: Path, meta: bool) -> Any:
    """The model of transformers, strictly, in the dtype of the file."""
    path = require_weight_file(place)
    transformers = require_transformers(place)
    tensors = read_tensors(place, meta=meta)
    try:
        config = transformers.AutoConfig.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
        cls = transformers.AutoModelForMaskedLM._model_mapping[type(config)]
        if meta:
            with torch.device("meta"):
                return _checked(cls(config).eval(), tensors, path)
        with quietly():
            model, report = cls.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=stored_dtype(tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of many kinds, by the field that is wrong
        raise ValueError(
            f"{place} is not a masked language model of transformers: {error}"
        ) from error
    faults = (report["missing_keys"], report["unexpected_keys"])
    missing, unexpected = (
        {name for name in names if not any(part in f".{name}" for part in UNUSED)}
        for names in faults
    )
    check_names("weights", missing, unexpected, path, REMEDY)
    wrong = {str(name): shapes for name, *shapes in report["mismatched_keys"]}
    check_shapes(
        {name: shapes[1] for name, shapes in wrong.items()},
        {name: tensors.get(name, next(iter(tensors.values()))) for name in wrong},
        path,
        REMEDY,
    )
    return model.eval()


def _checked(model: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    """A model without memory after a look at the names and shapes that are there for it."""
    known = {name: value.shape for name, value in model.state_dict().items()}
    renamed = {OLD.sub(_new, name): tensor for name, tensor in tensors.items()}
    used = {n: t for n, t in renamed.items() if not any(part in f".{n}" for part in UNUSED)}
    needed = {n for n, _ in model.named_parameters() if not any(p in f".{n}" for p in UNUSED)}
    check_names("weights", needed | (set(used) & set(known)), set(used), path, REMEDY)
    check_shapes(known, used, path, REMEDY)
    return model


def _new(match: re.Match) -> str:
    return "LayerNorm.weight" if match[1] == "gamma" else "LayerNorm.bias"
