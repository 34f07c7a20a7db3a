"""Models of the transformers library from tensors that were renamed to its names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edlm_engine.checkpoints.files import CONFIG
from edlm_engine.checkpoints.hub_tokenizer import HubTokenizer
from edlm_engine.checkpoints.registry import Request
from edlm_engine.checkpoints.weights import REMEDY, check_names, check_shapes
from edlm_engine.models.causal_lm import quietly
from edlm_engine.models.layers import cast_parameters

HEAD = "lm_head.weight"


def assemble(
    kind: str,
    fields: dict[str, Any],
    tensors: dict[str, Tensor],
    path: Path,
    theirs: Callable[[str], str] = str,
) -> Any:
    """A model of transformers in eval mode that holds these tensors, in their dtype.

    kind: its name there, such as "Llama". fields: of its configuration. theirs: from its parameter
    names to those of the file, for messages; by default the same. Raises ValueError naming
    each tensor that is missing, unexpected or misshapen, and ImportError without transformers.
    """
    transformers = require_transformers(path)
    try:
        config = getattr(transformers, f"{kind}Config")(**fields)
        head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
        cls = getattr(transformers, f"{kind}{head}")
        with torch.device("meta"):
            empty = cls(config)
        wanted = {name: p.shape for name, p in empty.named_parameters()}
    except Exception as error:  # of many kinds, by the field that is wrong
        raise ValueError(f"{path.parent / CONFIG} is not that of a {kind}: {error}") from error
    shapes = {theirs(name): shape for name, shape in wanted.items()}
    found = {theirs(name): tensor for name, tensor in tensors.items()}
    check_names("weights", set(shapes), set(found), path, REMEDY)
    check_shapes(shapes, found, path, REMEDY)
    if any(tensor.is_meta for tensor in tensors.values()):
        return empty.to(stored_dtype(tensors)).eval().requires_grad_(False)
    with quietly():
        model = cls.from_pretrained(
            None, config=config, state_dict=tensors, dtype=stored_dtype(tensors)
        )
    return model.eval().requires_grad_(False)


def stored_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """The widest floating dtype of the tensors."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return max(kinds, key=lambda dtype: dtype.itemsize, default=torch.float32)


def cast(model: Any, request: Request) -> Any:
    """The model's blocks and head in the dtypes wanted, in place; a head of its own if they differ.

    The embedding goes with the blocks.
    """
    linear = model.get_output_embeddings()
    head = linear.weight.detach()
    if request.head is not None and request.head != request.blocks:
        linear.weight = nn.Parameter(head.to(request.head, copy=True), requires_grad=False)
    elif request.head is not None:
        cast_parameters(linear, request.head)
    if request.blocks is not None:
        cast_parameters(model.base_model, request.blocks)
    return model


def require_transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"{path} is a transformers model: pip install 'edlm_engine[hub]'"
        ) from error
    return transformers


def known_to_transformers(config: dict[str, Any], mapping: str) -> bool:
    """Whether a class for such a configuration ships with transformers, by a mapping of its.

    True where transformers is absent, so that whoever loads says what to install.
    """
    if "model_type" not in config:
        return False
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return True
    return config["model_type"] in getattr(modeling_auto, mapping)


def untie(tensors: dict[str, Tensor], embedding: str, tied: bool) -> bool:
    """Drop a stored head that is the embedding once more; returns whether the head is tied.

    A head that differs is kept, whatever the configuration says; without memory nothing differs.
    """
    if not tied or HEAD not in tensors or embedding not in tensors:
        return tied
    head, rows = tensors[HEAD], tensors[embedding]
    same = head.is_meta or torch.equal(head, rows)
    if same:
        del tensors[HEAD]
    return same


def mask_token(
    request: Request,
    config: dict[str, Any],
    tokenizer: HubTokenizer | None,
    place: Path,
    default: int | None = None,
) -> int:
    """The mask: as asked, of the configuration, or of the tokenizer; else default or ValueError."""
    given = (request.mask_id, config.get("mask_token_id"), config.get("mask_id"))
    named = tokenizer.special.get("mask_token") if tokenizer is not None else None
    for mask_id in (*given, named, default):
        if mask_id is not None:
            return int(mask_id)
    raise ValueError(
        f"{place} names no mask token: give mask_id, or a config.json with mask_token_id, "
        "or a tokenizer with a mask_token"
    )


def unused_ids(
    vocab_size: int, tokenizer: HubTokenizer | None, others: Iterable[int] = ()
) -> list[int]:
    """Rows after the tokenizer's last token, which pad the vocabulary, and `others`."""
    padding = () if tokenizer is None else range(tokenizer.vocab_size, vocab_size)
    return sorted({*padding, *others})
