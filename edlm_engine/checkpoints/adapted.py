"""A causal language model adapted to masked diffusion: its change, or all its weights, on disk.

A folder holds config.json (architecture "adapted-causal-lm") and perhaps tokenizer.json; low-rank
changes lie in adapter_config.json and adapter_model.safetensors as peft writes them, with the
mask embedding beside them; full weights lie in model.safetensors under the names of transformers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from edlm_engine.checkpoints.base import find_base
from edlm_engine.checkpoints.files import CONFIG, TOKENIZER, WEIGHTS, read_json, write_json
from edlm_engine.checkpoints.hub import ADAPTER
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.checkpoints.weights import check_names, check_shapes, read_weights
from edlm_engine.models.bidirectional import BidirectionalCausalLM
from edlm_engine.models.causal_lm import CausalLMScorer, locate_gguf, read_causal_lm
from edlm_engine.models.low_rank import add_low_rank

ARCHITECTURE = "adapted-causal-lm"
ADAPTER_CONFIG = "adapter_config.json"
MASK_EMBEDDING = "mask_embedding"
PEFT_PREFIX = "base_model.model."
KINDS = ("low-rank", "full")


@dataclass(frozen=True, kw_only=True)
class AdaptedConfig:
    """config.json of an adapted model.

    base: name or path of the model it was made from, which is the AR model of the pair.
    weights: "low-rank" or "full", what is stored.
    mask_id: the mask token; with `added_mask` a row after the base's vocabulary.
    bos_id: the token in front, for the denoiser and the AR model alike.
    length: the windows it was trained on, the longest it generates.
    model: with full weights, the configuration of transformers.
    """

    base: str
    weights: str
    mask_id: int
    bos_id: int
    length: int
    added_mask: bool = False
    model: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.weights not in KINDS:
            raise ValueError(f"weights must be one of {list(KINDS)}, got {self.weights!r}")
        for name in ("mask_id", "bos_id", "length"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
        if (self.model is None) == (self.weights == "full"):
            raise ValueError(f"model must be given with full weights only, got {self.model!r}")


@dataclass(frozen=True)
class AdaptedPair:
    """Both halves: they share every parameter that the adaptation did not change."""

    denoiser: BidirectionalCausalLM
    ar: CausalLMScorer | None
    tokenizer: Tokenizer


def is_adapted(folder: Path) -> bool:
    path = folder / CONFIG
    return path.is_file() and read_json(path).get("architecture") == ARCHITECTURE


def read_config(folder: Path) -> AdaptedConfig:
    fields = read_json(folder / CONFIG)
    fields.pop("architecture", None)
    wanted = set(AdaptedConfig.__dataclass_fields__)
    check_names("fields", wanted, set(fields), folder / CONFIG)
    try:
        return AdaptedConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def load_adapted(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    with_ar: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    head_dtype: torch.dtype = torch.float32,
) -> AdaptedPair:
    """Read an adapted denoiser and, with `with_ar`, its base as the AR model, in eval mode.

    base: where the base lies, if not where `find_base` looks. dtype: of all but the heads.
    Raises FileNotFoundError if the base is not to be had, saying what to run, and ValueError for
    files that do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    ar: CausalLMScorer | None = None
    if with_ar or config.weights == "low-rank":
        place = find_base(config.base, base)
        model = read_causal_lm(place, dtype=torch.float32)
        if config.added_mask:
            add_mask_row(model)
        forbidden = -1 if config.added_mask else config.mask_id
        ar = CausalLMScorer(model, config.bos_id, forbidden).blocks_to(dtype)
        _set_head_dtype(ar.model, head_dtype)
    if config.weights == "full":
        model, mask_embedding = _read_full(folder, config)
        model = CausalLMScorer(model, config.bos_id).blocks_to(dtype).model
        _set_head_dtype(model, head_dtype)
        denoiser = _denoiser(model, config, mask_embedding.to(dtype))
    else:
        assert ar is not None
        # The twin is made of the cast base, and so shares all of it.
        changes, mask_embedding = read_low_rank(folder)
        denoiser = _denoiser(ar.model, config, mask_embedding.to(dtype))
        add_low_rank(denoiser.model, changes)
    for part in (denoiser, ar):
        if part is not None:
            part.to(device).eval().requires_grad_(False)
    tokenizer = folder / TOKENIZER
    if tokenizer.is_file():
        read = Tokenizer.from_file(tokenizer, bos_id=config.bos_id)
    else:
        read = base_tokenizer(find_base(config.base, base), config.bos_id)
    return AdaptedPair(denoiser, ar if with_ar else None, read)


def _denoiser(model: nn.Module, config: AdaptedConfig, mask: Tensor) -> BidirectionalCausalLM:
    return BidirectionalCausalLM(
        model,
        mask_id=config.mask_id,
        bos_id=config.bos_id,
        length=config.length,
        mask_embedding=mask,
    )


def _set_head_dtype(model: Any, dtype: torch.dtype) -> None:
    head = model.get_output_embeddings().weight
    head.data = head.data.to(dtype)


def base_tokenizer(place: Path, bos_id: int) -> Tokenizer:
    """The tokenizer beside a base of transformers, folder or GGUF file."""
    from transformers import AutoTokenizer

    folder, gguf = locate_gguf(place)
    source = {"gguf_file": gguf} if gguf else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **source
        )
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # the library raises plain Exceptions for damaged files
        raise ValueError(f"{place} has no tokenizer that can be read: {error}") from error
    return Tokenizer(backend, bos_id=bos_id)


def add_mask_row(model: Any) -> int:
    """One more token, the mask, after the vocabulary of a transformers model; returns its id."""
    mask_id = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    return mask_id


def read_low_rank(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """(layer name -> (down, up) with the scale inside up, embedding of the mask) of a folder."""
    path = folder / ADAPTER
    if not path.is_file():
        raise FileNotFoundError(f"no adapter at {folder}: looked for {path}")
    tensors, options = read_weights(path), read_json(folder / ADAPTER_CONFIG)
    try:
        scale = float(options["lora_alpha"]) / int(options["r"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} must have r and lora_alpha: {error}"
        ) from error
    if MASK_EMBEDDING not in tensors:
        raise ValueError(f"{path} has missing weights ['{MASK_EMBEDDING}']")
    mask = tensors.pop(MASK_EMBEDDING)
    names = {
        name: re.fullmatch(rf"{PEFT_PREFIX}(.+)\.lora_([AB])\.weight", name) for name in tensors
    }
    unexpected = sorted(name for name, match in names.items() if match is None)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, match in names.items():
        if match is not None:
            pairs.setdefault(match[1], {})[match[2]] = tensors[name]
    missing = sorted(layer for layer, pair in pairs.items() if len(pair) < 2)
    if missing or unexpected:
        raise ValueError(
            f"{path} has missing weights for {missing}, unexpected weights {unexpected}"
        )
    return {layer: (pair["A"], scale * pair["B"].float()) for layer, pair in pairs.items()}, mask


def save_adapted(
    out: str | Path,
    config: AdaptedConfig,
    tensors: Mapping[str, Tensor],
    *,
    adapter: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an adapted model, each file complete or absent.

    tensors: what is stored, with "mask_embedding" among them, cast to `dtype` if given: low-rank
    factors by their peft names, or full weights by those of transformers. adapter: the content of
    adapter_config.json, for low-rank ones.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    stored = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()
    }
    file = out / (WEIGHTS if adapter is None else ADAPTER)
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_bytes(save(stored, metadata={"format": "pt"}))
    os.replace(temporary, file)
    if adapter is not None:
        write_json(out / ADAPTER_CONFIG, adapter)
    write_json(out / CONFIG, {"architecture": ARCHITECTURE, **asdict(config)})


def _read_full(folder: Path, config: AdaptedConfig) -> tuple[nn.Module, Tensor]:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no model at {folder}: looked for {path}")
    tensors = read_weights(path)
    fields = dict(config.model or {})
    try:
        made = AutoConfig.for_model(fields.pop("model_type", None), **fields)
        model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except Exception as error:  # the library raises plain Exceptions for what it does not know
        raise ValueError(f"{folder / CONFIG}: model is not one of transformers: {error}") from error
    wanted = dict(model.named_parameters())
    check_names("weights", {*wanted, MASK_EMBEDDING}, set(tensors), path)
    mask = tensors.pop(MASK_EMBEDDING)
    check_shapes({name: p.shape for name, p in wanted.items()}, tensors, path)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    return model, mask
