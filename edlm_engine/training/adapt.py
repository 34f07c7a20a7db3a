"""A pretrained causal language model becomes a masked denoiser: what `edlm train adapt` builds.

Its causal mask goes, the prediction stays shifted by one (DiffuGPT, arXiv 2410.17891), and all its
weights are trained, or a low-rank change in every linear layer (LoRA, arXiv 2106.09685, by peft).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

from edlm_engine import ops
from edlm_engine.checkpoints.adapted import (
    MASK_EMBEDDING,
    PEFT_PREFIX,
    AdaptedConfig,
    add_mask_row,
    base_tokenizer,
    read_config,
    read_low_rank,
    save_adapted,
)
from edlm_engine.checkpoints.base import find_base
from edlm_engine.checkpoints.files import WEIGHTS
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.checkpoints.weights import read_weights
from edlm_engine.models.bidirectional import BidirectionalCausalLM
from edlm_engine.models.causal_lm import locate_gguf, read_causal_lm
from edlm_engine.training.config import AdaptConfig, require
from edlm_engine.training.corpus import text_stream

SAMPLES, SAMPLE_BATCH = "drawn", 32


def tokenizer(config: AdaptConfig, texts: list[str]) -> Tokenizer:
    """The base's own; its BOS is the one that the run puts in front."""
    place = find_base(config.base)
    read = base_tokenizer(place, 0)
    if config.bos is None:
        named = _base_bos(place)
        if named is None:
            raise ValueError("bos must be given, for the base names none, got None")
        read.bos_id = named
    else:
        read.bos_id = _token(read, "bos", config.bos)
    return read


def _base_bos(place: Path) -> int | None:
    from transformers import AutoConfig

    folder, gguf = locate_gguf(place)
    source = {"gguf_file": gguf} if gguf else {}
    return AutoConfig.from_pretrained(folder, local_files_only=True, **source).bos_token_id


def build(config: AdaptConfig, tokens: Tokenizer) -> BidirectionalCausalLM:
    """The base with its causal mask off, ready to train: `requires_grad` says what."""
    base = read_causal_lm(find_base(config.base), dtype=torch.float32)
    mask_id = add_mask_row(base) if config.mask is None else _token(tokens, "mask", config.mask)
    embedding = base.get_input_embeddings().weight.detach()
    model = BidirectionalCausalLM(
        base,
        mask_id=mask_id,
        bos_id=tokens.bos_id,
        length=config.length,
        # What the base makes least of: the mean of all tokens.
        mask_embedding=embedding[:mask_id].mean(0),
    )
    if config.weights == "low-rank":
        _add_trainable_factors(model, config)
    if config.start is not None:
        _start_from(model, config, Path(config.start))
    return model


def stream(config: AdaptConfig, texts: list[str], tokens: Tokenizer) -> Tensor:
    """What the run trains on, as one stream of tokens: the texts, or documents of the base."""
    if config.self_samples == 0:
        return text_stream(config, texts, tokens)
    folder = Path(config.out) / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    base = None
    for first in trange(0, config.self_samples, SAMPLE_BATCH, desc="draw text", disable=None):
        file = folder / f"{first:08d}.npy"
        if file.exists():
            continue
        base = base or read_causal_lm(find_base(config.base), dtype=torch.float32).eval()
        documents = range(first, min(config.self_samples, first + SAMPLE_BATCH))
        drawn = draw_documents(base, config, tokens, documents)
        temporary = file.with_suffix(".tmp")
        with open(temporary, "wb") as out:
            np.save(out, drawn.to(torch.int32).numpy())
        os.replace(temporary, file)
    drawn = torch.from_numpy(np.concatenate([np.load(f) for f in sorted(folder.glob("*.npy"))]))
    end = drawn.new_full((len(drawn), 1), tokens.bos_id)
    return torch.cat((drawn, end), 1).flatten()


@torch.inference_mode()
def draw_documents(
    base: nn.Module, config: AdaptConfig, tokens: Tokenizer, documents: Sequence[int]
) -> Tensor:
    """Documents [n, 4 * length] int64 of the base's own law, left to right after the BOS.

    Document i is a pure function of (`config.seed`, i), up to the base's own rounding.
    """
    mask_id = -1 if config.mask is None else _token(tokens, "mask", config.mask)
    numbers = torch.tensor(list(documents))
    token = torch.full((len(numbers),), tokens.bos_id)
    drawn, cache = [], None
    for position in range(4 * config.length):
        out = base(input_ids=token[:, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        keys = ops.stream_keys(torch.tensor(config.seed), numbers, position)
        token = ops.sample_candidates(out.logits[:, -1], keys, 1, forbidden_id=mask_id)[0][:, 0]
        drawn.append(token)
    return torch.stack(drawn, 1)


def _token(tokens: Tokenizer, field: str, name: str) -> int:
    token = tokens.token_id(name)
    if token is None:
        raise ValueError(f"{field} must be a token of the base's vocabulary, got {name!r}")
    return token


def _add_trainable_factors(model: BidirectionalCausalLM, config: AdaptConfig) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            "low-rank weights need: pip install 'edlm_engine[training,peft]'"
        ) from error
    model.model.requires_grad_(False)
    torch.manual_seed(config.seed)
    head = model.model.get_output_embeddings()
    layers = [
        name
        for name, layer in model.model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    ]
    options: Any = LoraConfig(r=config.rank, target_modules=layers)
    options.lora_alpha = config.alpha
    if config.precision == "bf16":
        # Frozen, so nothing is lost by storing once what autocast would make at every call.
        for name in layers:
            layer = model.model.get_submodule(name)
            layer.weight.data = layer.weight.data.bfloat16()
    inject_adapter_in_model(options, model.model)
    for parameter in _factors(model).values():
        parameter.data = parameter.data.float()


def _factors(model: BidirectionalCausalLM) -> dict[str, nn.Parameter]:
    """The low-rank factors by the names under which peft stores them."""
    return {
        PEFT_PREFIX + name.replace(".default.weight", ".weight"): parameter
        for name, parameter in model.model.named_parameters()
        if ".lora_" in name
    }


def _stored(model: BidirectionalCausalLM, config: AdaptConfig) -> dict[str, nn.Parameter]:
    low_rank = config.weights == "low-rank"
    weights = _factors(model) if low_rank else dict(model.model.named_parameters())
    assert model.mask_embedding is not None  # `build` gives it one
    return {**weights, MASK_EMBEDDING: model.mask_embedding}


def _start_from(model: BidirectionalCausalLM, config: AdaptConfig, folder: Path) -> None:
    """Copy the weights of an earlier adapted folder of the same form."""
    earlier = read_config(folder)
    require("start", earlier.weights == config.weights, f"a {config.weights} folder", config.start)
    require("start", earlier.mask_id == model.mask_id, f"of mask {model.mask_id}", config.start)
    own = _stored(model, config)
    if config.weights == "full":
        tensors = read_weights(folder / WEIGHTS)
    else:
        changes, mask = read_low_rank(folder)
        tensors = {MASK_EMBEDDING: mask}
        for layer, (down, up) in changes.items():
            tensors[f"{PEFT_PREFIX}{layer}.lora_A.weight"] = down
            tensors[f"{PEFT_PREFIX}{layer}.lora_B.weight"] = up * (config.rank / config.alpha)
    fits = {name: tuple(t.shape) for name, t in tensors.items()}
    wanted = {name: tuple(p.shape) for name, p in own.items()}
    require("start", fits == wanted, "of the same base and rank", config.start)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def show_later_positions(model: BidirectionalCausalLM, config: AdaptConfig, step: int) -> None:
    """The annealed mask of a step: each pair of positions is shown with the share reached."""
    if step >= config.anneal:
        model.visible = None
        return
    size = config.length + 1
    random = torch.Generator().manual_seed((config.seed << 32) + step)
    shown = torch.rand(size, size, generator=random) < step / config.anneal
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    model.visible = (causal | shown)[None, None].to(model.head[0].device)


def optimizers(model: nn.Module, config: AdaptConfig) -> list[torch.optim.Optimizer]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    return [torch.optim.AdamW(trained, betas=(0.9, 0.95), fused=True, **options)]


def save(model: BidirectionalCausalLM, config: AdaptConfig, out: Path) -> None:
    """Write the adapted folder; see `edlm_engine.checkpoints.adapted`."""
    full = config.weights == "full"
    stored = AdaptedConfig(
        base=config.base,
        weights=config.weights,
        mask_id=model.mask_id,
        bos_id=model.bos_id or 0,
        length=config.length,
        added_mask=config.mask is None,
        model=_plain_config(model) if full else None,
    )
    adapter = None
    if not full:
        adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": config.rank}
        adapter |= {"lora_alpha": config.alpha, "target_modules": "all-linear", "bias": "none"}
        adapter |= {"base_model_name_or_path": config.base}
    save_adapted(out, stored, _stored(model, config), adapter=adapter)


def _plain_config(model: BidirectionalCausalLM) -> dict[str, Any]:
    """The transformers configuration, without how these weights were once packed."""
    fields = model.model.config.to_dict()
    dropped = ("quantization_config", "_name_or_path", "transformers_version", "dtype")
    return {name: value for name, value in fields.items() if name not in dropped}
