"""Models, tokenizers and bundles on disk: strict both ways, nothing half written."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from edlm_engine.models import (
    ARConfig,
    AutoregressiveTransformer,
    CausalLMScorer,
    DiT,
    DiTConfig,
)
from edlm_engine.models.layers import TIED_HEAD
from edlm_engine.tokenizer import Tokenizer

ARCHITECTURES = {"dit": (DiTConfig, DiT), "ar": (ARConfig, AutoregressiveTransformer)}
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
BUNDLED = Path(__file__).with_name("assets") / "novels"

Model = DiT | AutoregressiveTransformer
Scorer = AutoregressiveTransformer | CausalLMScorer


@dataclass(frozen=True)
class Bundle:
    """What belongs together for sampling; `ar` is the model behind an AR energy."""

    denoiser: DiT
    ar: Scorer | None
    tokenizer: Tokenizer | None


def write_json(path: Path, content: Any) -> None:
    """Write JSON, complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def save_model(model: Model, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors, parameters cast to `dtype` if given.

    A tied head is stored once. Each file is complete or absent.
    """
    architecture = next((a for a, (_, cls) in ARCHITECTURES.items() if type(model) is cls), None)
    if architecture is None:
        raise ValueError(
            f"model must be a DiT or an AutoregressiveTransformer, got {type(model).__name__}; "
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

    Raises FileNotFoundError naming what was looked for, and ValueError for a damaged file, for
    missing, unexpected or wrongly shaped weights, and for missing or unknown configuration fields.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"no model at {directory}: looked for {directory / name}")
    model = _model_from_config(directory / CONFIG)
    tensors = _read_weights(directory / WEIGHTS)
    _check_weights(model, tensors, directory / WEIGHTS)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_head()
    return model.to(device=device, dtype=dtype).eval()


def _model_from_config(path: Path) -> Model:
    """The model a config.json describes, without memory for its weights."""
    fields = read_json(path)
    architecture = fields.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path}: architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}"
        )
    config_class, model_class = ARCHITECTURES[architecture]
    wanted = {field.name for field in dataclasses.fields(config_class)}
    _check_names("fields", wanted, set(fields), path)
    try:
        config = config_class(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    with torch.device("meta"):
        return model_class(config)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _check_weights(model: Model, tensors: dict[str, Tensor], path: Path) -> None:
    _check_names("weights", _stored_names(model), set(tensors), path)
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [
        f"{name} must be {wanted[name]}, got {list(tensor.shape)}"
        for name, tensor in sorted(tensors.items())
        if list(tensor.shape) != wanted[name]
    ]
    if wrong:
        raise ValueError(f"{path} has wrong shapes: {'; '.join(wrong)}")


def _check_names(what: str, wanted: set[str], got: set[str], path: Path) -> None:
    missing, unexpected = sorted(wanted - got), sorted(got - wanted)
    if missing or unexpected:
        raise ValueError(f"{path} has missing {what} {missing}, unexpected {what} {unexpected}")


def load_denoiser(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> DiT:
    """`load_model` for a folder that must hold a denoiser."""
    return _expect(load_model(directory, device=device, dtype=dtype), DiT, directory)


def load_ar(
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Scorer:
    """A left-to-right model: a folder of our own, or of any causal language model of transformers.

    The latter has a config.json with a `model_type`; it is read from the folder only, without
    remote code, and a BOS is put in front where its configuration names one. Raises as
    `load_model` does, and ImportError where transformers is needed and absent.
    """
    path = Path(directory) / CONFIG
    if path.is_file() and "model_type" in read_json(path):
        return CausalLMScorer.from_pretrained(directory, device=device, dtype=dtype)
    model = load_model(directory, device=device, dtype=dtype)
    return _expect(model, AutoregressiveTransformer, directory)


def _expect(model: Model, wanted: type, directory: str | Path) -> Any:
    if not isinstance(model, wanted):
        raise ValueError(f"{directory} must hold a {wanted.__name__}, got a {type(model).__name__}")
    return model


def load_bundle(
    path: str | Path | None = None,
    *,
    energy: str | Path | None = "default",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Bundle:
    """A denoiser with its tokenizer and the AR model of its energy.

    `path` is a folder with denoiser/ and perhaps ar/ and tokenizer.json, or one that is itself a
    denoiser with perhaps a tokenizer.json; None is the bundled model. `energy` is "ar" or "coar"
    for the AR model beside the denoiser, the folder of another one, or None; "default" is "ar" for
    the bundled model and None elsewhere. Raises as `load_model` does.
    """
    root = BUNDLED if path is None else Path(path)
    places = [folder for folder in (root / "denoiser", root) if (folder / CONFIG).is_file()]
    if not places:
        raise FileNotFoundError(
            f"no model at {root}: looked for {root / 'denoiser' / CONFIG} and {root / CONFIG}"
        )
    if energy == "default":
        energy = "ar" if path is None else None
    beside = energy in ("ar", "coar")
    scorer = root / "ar" if beside else energy
    tokenizer = root / TOKENIZER
    return Bundle(
        denoiser=load_denoiser(places[0], device=device, dtype=dtype),
        ar=None if scorer is None else load_ar(scorer, device=device, dtype=dtype),
        tokenizer=Tokenizer.from_file(tokenizer) if tokenizer.is_file() else None,
    )
