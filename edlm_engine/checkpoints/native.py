"""Our own models on disk: a config.json and a model.safetensors."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from edlm_engine.checkpoints.files import CONFIG, WEIGHTS, read_json, write_json
from edlm_engine.checkpoints.weights import check_names, check_shapes, read_weights
from edlm_engine.models import (
    ARConfig,
    AutoregressiveTransformer,
    DiT,
    DiTConfig,
    EnergyConfig,
    EnergyTransformer,
)
from edlm_engine.models.layers import TIED_HEAD

ARCHITECTURES = {
    "dit": (DiTConfig, DiT),
    "ar": (ARConfig, AutoregressiveTransformer),
    "nce": (EnergyConfig, EnergyTransformer),
}

Model = DiT | AutoregressiveTransformer | EnergyTransformer


def save_model(model: Model, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors, parameters cast to `dtype` if given.

    A tied head is stored once. Each file is complete or absent.
    """
    architecture = next((a for a, (_, cls) in ARCHITECTURES.items() if type(model) is cls), None)
    if architecture is None:
        raise ValueError(
            "model must be a DiT, an AutoregressiveTransformer or an EnergyTransformer, "
            f"got {type(model).__name__}; "
            "a folded denoiser has no layout on disk, load it unfolded to save it"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        # Buffers (the rotary frequencies) keep float32: positions need it.
        name: tensor.to("cpu", dtype if name in parameters else None).contiguous()
        for name, tensor in model.state_dict().items()
        if name in _stored_names(model)
    }
    temporary = directory / f"{WEIGHTS}.tmp"
    temporary.write_bytes(save(tensors))
    os.replace(temporary, directory / WEIGHTS)
    config = {"architecture": architecture, **dataclasses.asdict(model.config)}
    write_json(directory / CONFIG, config)


def _stored_names(model: Model) -> set[str]:
    tied = {TIED_HEAD} if model.config.tie_word_embeddings else set()
    return set(model.state_dict()) - tied


def load_model(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """Read a folder written by `save_model`, in eval mode; `dtype=None` keeps the stored one.

    On the device "meta" without memory for the weights. Raises FileNotFoundError naming what was
    looked for, and ValueError for a damaged file, for missing, unexpected or wrongly shaped
    weights, and for missing or unknown configuration fields.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"no model at {directory}: looked for {directory / name}")
    config, model_class = _read_config(directory / CONFIG)
    tensors = read_weights(directory / WEIGHTS, meta=torch.device(device).type == "meta")
    model = _build(config, model_class, len(tensors), directory / CONFIG)
    _check_weights(model, tensors, directory / WEIGHTS)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_head()
    return model.to(device=device, dtype=dtype).eval()


def _read_config(path: Path) -> tuple[Any, type[Model]]:
    """The configuration in a config.json, and the class of its model."""
    fields = read_json(path)
    architecture = fields.pop("architecture", None)
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path}: architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}"
        )
    config_class, model_class = ARCHITECTURES[architecture]
    wanted = {field.name for field in dataclasses.fields(config_class)}
    check_names("fields", wanted, set(fields), path)
    try:
        return config_class(**fields), model_class
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _build(config: Any, model_class: type[Model], weights: int, path: Path) -> Model:
    """The model of a configuration, without memory for its weights, of which there are so many."""
    if config.n_blocks > weights:  # each has more than one: the modules alone could fill the memory
        raise ValueError(
            f"{path}: n_blocks must fit the {weights} weights in {WEIGHTS}, got {config.n_blocks}"
        )
    try:
        with torch.device("meta"):
            return model_class(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's, for numbers out of reach
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: no model can have these sizes: {reason}") from error


def _check_weights(model: Model, tensors: dict[str, Tensor], path: Path) -> None:
    check_names("weights", _stored_names(model), set(tensors), path)
    check_shapes({name: t.shape for name, t in model.state_dict().items()}, tensors, path)
