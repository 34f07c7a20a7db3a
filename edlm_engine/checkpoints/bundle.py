"""What belongs together for sampling: a denoiser, its tokenizer and the model of its energy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edlm_engine.checkpoints.adapted import is_adapted, load_adapted
from edlm_engine.checkpoints.files import ASSETS, BUNDLED, CONFIG, TOKENIZER, read_json
from edlm_engine.checkpoints.native import Model, load_model
from edlm_engine.checkpoints.tokenizer import Tokenizer, require_same_tokens
from edlm_engine.execution.dtype import fast_dtype
from edlm_engine.models import AutoregressiveTransformer, CausalLMScorer, DiT
from edlm_engine.models.bidirectional import BidirectionalCausalLM
from edlm_engine.models.dit import FoldedDiT
from edlm_engine.models.layers import cast_parameters

# Pairs that come with the package, by name: their base weights are found on the machine.
NAMED_PAIRS = ("smollm2",)

Scorer = AutoregressiveTransformer | CausalLMScorer


@dataclass(frozen=True)
class Bundle:
    """What belongs together for sampling; `ar` is the model behind an AR energy."""

    denoiser: DiT | FoldedDiT | BidirectionalCausalLM
    ar: Scorer | None
    tokenizer: Tokenizer | None


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
    for the AR model beside the denoiser, the folder of another one ("./ar" for one of that name in
    the working directory), or None; "default" is "ar" for the bundled model and None elsewhere.
    Raises as `load_model` does, and ValueError for a tokenizer of another size than the denoiser
    has, or whose tokens are not those of the energy's own tokenizer.json.
    """
    root = BUNDLED if path is None else Path(path)
    places = [folder for folder in (root / "denoiser", root) if (folder / CONFIG).is_file()]
    if not places:
        raise FileNotFoundError(
            f"no model at {root}: looked for {root / 'denoiser' / CONFIG} and {root / CONFIG}"
        )
    if energy == "default":
        energy = "ar" if path is None else None
    scorer = None if energy is None else _scorer_folder(root, energy)
    denoiser = load_denoiser(places[0], device=device, dtype=dtype)
    tokenizer = _tokenizer(root / TOKENIZER, denoiser)
    if tokenizer is not None and scorer is not None:
        require_same_tokens(root / TOKENIZER, scorer / TOKENIZER, denoiser.mask_id)
    ar = None if scorer is None else load_ar(scorer, device=device, dtype=dtype)
    return Bundle(denoiser, ar, tokenizer)


def _scorer_folder(root: Path, energy: str | Path) -> Path:
    if energy not in ("ar", "coar"):
        return Path(energy)
    if not (root / "ar").is_dir():
        raise FileNotFoundError(
            f'no model at {root / "ar"}, where energy="{energy}" means the AR model beside the '
            'denoiser: give the folder of one ("./ar" for one of that name here), '
            "or put both together by `edlm bundle`"
        )
    return root / "ar"


def _tokenizer(path: Path, denoiser: DiT) -> Tokenizer | None:
    if not path.exists():
        return None
    if not path.is_file():
        raise ValueError(f"{path} must be a file, it is a folder")
    tokenizer = Tokenizer.from_file(path)
    vocab_size, mask_last = denoiser.vocab_size, denoiser.mask_id == denoiser.vocab_size - 1
    if tokenizer.vocab_size not in (vocab_size, vocab_size - mask_last):
        raise ValueError(
            f"{path} must hold the denoiser's {vocab_size} tokens, with the mask or without, "
            f"it holds {tokenizer.vocab_size}"
        )
    return tokenizer


def load_for_sampling(
    path: str | Path | None = None,
    *,
    energy: str | Path | None = "default",
    base: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Bundle:
    """A bundle as the engine wants it: folded where that can be, in the dtypes that are fast.

    `path` and `energy` are those of `load_bundle`, where `path` may also be the name of a pair that
    comes with the package, or the folder of an adapted causal language model: its "ar" is its base,
    looked for at `base` first, and the default. `dtype` is of all weights; None means blocks in the
    device's fast dtype under float32 heads. Raises as `load_bundle` and `load_adapted` do.
    """
    if path is not None and str(path) in NAMED_PAIRS and not Path(path).exists():
        path = ASSETS / str(path)
    if path is not None and is_adapted(Path(path)):
        return _adapted(Path(path), energy, base, device, dtype)
    if base is not None:
        raise ValueError(f"base is only for adapted models, {path or 'the bundled one'} is none")
    bundle = load_bundle(path, energy=energy, device=device, dtype=torch.float32)
    denoiser: Any = bundle.denoiser
    if not denoiser.config.time_conditioning:
        denoiser = denoiser.folded()
    for model in (denoiser, bundle.ar):
        if model is not None:
            _cast(model, device, dtype)
    return Bundle(denoiser, bundle.ar, bundle.tokenizer)


def _cast(model: Any, device: torch.device | str, dtype: torch.dtype | None) -> None:
    cast_parameters(model, dtype) if dtype else model.blocks_to(fast_dtype(device))


def _adapted(
    folder: Path,
    energy: str | Path | None,
    base: str | Path | None,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Bundle:
    own = energy in ("default", "ar", "coar")
    pair = load_adapted(
        folder,
        base=base,
        with_ar=own,
        device=device,
        dtype=dtype or fast_dtype(device),
        head_dtype=dtype or torch.float32,
    )
    ar: Scorer | None = pair.ar
    if energy is not None and not own:
        require_same_tokens(folder / TOKENIZER, Path(energy) / TOKENIZER, pair.denoiser.mask_id)
        ar = load_ar(energy, device=device, dtype=torch.float32)
        _cast(ar, device, dtype)
    return Bundle(pair.denoiser, ar, pair.tokenizer)
