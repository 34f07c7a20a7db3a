"""What belongs together for sampling: a denoiser, its tokenizer and the model of its energy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edlm_engine.checkpoints.files import ASSETS, BUNDLED, TOKENIZER
from edlm_engine.checkpoints.hub import Source, locate
from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.native import Model, load_model
from edlm_engine.checkpoints.registry import (
    Format,
    Request,
    find_format,
    is_energy,
    is_scorer,
)
from edlm_engine.checkpoints.tokenizer import Tokenizer, require_same_tokens
from edlm_engine.execution.dtype import fast_dtype
from edlm_engine.models import AutoregressiveTransformer, CausalLMScorer, DiT

# Pairs that come with the package, by name: their base weights are found on the machine.
NAMED_PAIRS = ("smollm2",)
# Energies beside a denoiser -> the folder they lie in.
BESIDE = {"ar": "ar", "coar": "ar", "nce": "energy"}
# Formats whose vocabulary is that of the tokenizer, with the mask or without; others are padded.
EXACT = ("native", "mdlm", "lightning")

Scorer = AutoregressiveTransformer | CausalLMScorer


@dataclass(frozen=True)
class Bundle:
    """What belongs together for sampling; `ar` and `nce` are the models behind such energies."""

    denoiser: Any  # a Denoiser
    ar: Any  # an AutoregressiveModel, or None
    tokenizer: Tokenizer | None
    nce: Any = None  # an EnergyModel, or None


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
    """A left-to-right model in any format: a folder or file, or an id of the hub.

    A model of transformers is read without remote code, and a BOS is put in front where its
    configuration names one. Raises as `load_model` does, and ImportError where transformers is
    needed and absent.
    """
    return load_scorer(directory, Request(device=device, blocks=dtype, head=dtype))


def load_scorer(
    name: str | Path, request: Request, source: Source | None = None, mask_id: int | None = None
) -> Any:
    """`load_ar` as a `Request` says; with `mask_id` that token is left out of what it predicts."""
    place = locate(name, source)
    model = load_energy(place, request, mask_id)
    if not is_scorer(model):
        raise _no_scorer(place, model)
    return model


def load_energy(place: Path, request: Request, mask_id: int | None = None) -> Any:
    """The model behind an energy: left to right, or the network of an NCE energy."""
    format = find_format(place)
    if request.device_map is not None and format.name != "causal-lm":
        raise ValueError(
            "device_map is only for an energy that is a causal language model of transformers, "
            f"{place} is {format.name}"
        )
    model = format.load(place, replace(request, mask_id=None, energy=True)).model
    if not (is_scorer(model) or is_energy(model)):
        raise _no_scorer(place, model)
    if isinstance(model, CausalLMScorer) and model.forbidden_id < 0 and mask_id is not None:
        model.forbidden_id = mask_id if mask_id < model.vocab_size else -1
    return model


def _no_scorer(place: Path, model: Any) -> ValueError:
    return ValueError(
        f"{place} must hold a left-to-right model, got a {type(model).__name__}: "
        "an energy scores whole sequences"
    )


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
    """A denoiser in any format with its tokenizer and the AR model of its energy.

    `path` is a folder with denoiser/ and perhaps ar/, energy/ and tokenizer.json, or the place of a
    denoiser with perhaps a tokenizer (see `locate`); None is the bundled model. `energy` is "ar" or
    "coar" for the AR model beside the denoiser, "nce" for the NCE energy beside it or in the same
    checkpoint of EDLM, the place of another of either ("./ar" for one of that name in the working
    directory), or None; "default" is "ar" for the bundled model and None elsewhere.
    Raises as `locate` and `find_format` do, and ValueError for files that do not fit, a tokenizer
    of another size than the denoiser has, or one whose tokens are not those of the energy's own.
    """
    return load_pair(path, energy, Request(device=device, blocks=dtype, head=dtype))


def load_for_sampling(
    path: str | Path | None = None,
    *,
    energy: str | Path | None = "default",
    base: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    source: Source | None = None,
    **options: Any,
) -> Bundle:
    """A bundle as the engine wants it: folded where that can be, in the dtypes that are fast.

    `path` and `energy` are those of `load_bundle`, where `path` may also be the name of a pair that
    comes with the package, or the folder of an adapted causal language model: its "ar" is its base,
    looked for at `base` first, and the default. `dtype` is of all weights; None means blocks in the
    device's fast dtype under float32 heads. `source` says how to look for `path`, `options` are
    fields of `Request`. Raises as `load_bundle` and `load_adapted` do.
    """
    blocks, head = dtype or fast_dtype(device), dtype or torch.float32
    asked = Request(device=device, blocks=blocks, head=head, fold=True, base=base, **options)
    return load_pair(path, energy, asked, source)


def load_pair(
    path: str | Path | None,
    energy: str | Path | None,
    request: Request,
    source: Source | None = None,
) -> Bundle:
    """What `load_bundle` and `load_for_sampling` share."""
    root = _root(path, source)
    denoiser_place = root / "denoiser" if (root / "denoiser").is_dir() else root
    format = find_format(denoiser_place)
    adapted = format.name == "adapted"
    if request.base is not None and not adapted:
        raise ValueError(f"base is only for adapted models, {path or 'the bundled one'} is none")
    if energy == "default":
        energy = "ar" if path is None or adapted else None
    with_ar = energy in ("ar", "coar")
    scorer: Path | None = None
    if energy is not None and not (with_ar and adapted):
        searched = None if source is None else replace(source, subfolder=None, revision=None)
        near = energy in BESIDE
        scorer = _beside(root, format, str(energy)) if near else locate(energy, searched)
    if request.device_map is not None and scorer is None:
        raise ValueError(
            "device_map is only for an energy that is a causal language model of transformers, "
            f"and {path or 'the bundled model'} ({format.name}) with energy={energy!r} has none"
        )
    loaded = format.load(denoiser_place, replace(request, with_ar=with_ar, device_map=None))
    denoiser, tokenizer, files = loaded.model, loaded.tokenizer, denoiser_place
    _require_denoiser(denoiser, denoiser_place, format)
    if root != denoiser_place and (shared := find_tokenizer(root)) is not None:
        tokenizer, files = shared, root
    files = (files if files.is_dir() else files.parent) / TOKENIZER
    if tokenizer is not None:
        _require_size(tokenizer, denoiser, files, format)
    if scorer is None:
        return Bundle(denoiser, loaded.ar, tokenizer)
    if tokenizer is None and scorer.is_dir():  # that of the energy, which has the same tokens
        tokenizer = find_tokenizer(scorer)
    ignored = {denoiser.mask_id, *getattr(denoiser, "never_drawn", ())}
    require_same_tokens(files, scorer / TOKENIZER, ignored)
    model = load_energy(scorer, request, denoiser.mask_id)
    if is_energy(model):
        return Bundle(denoiser, None, tokenizer, model)
    return Bundle(denoiser, model, tokenizer)


def _root(path: str | Path | None, source: Source | None) -> Path:
    if path is None:
        return BUNDLED
    if str(path) in NAMED_PAIRS and not Path(path).exists():
        return ASSETS / str(path)
    return locate(path, source)


def beside(root: Path, format: Format, folder: str = "ar") -> list[Path]:
    """Where an energy of a denoiser may lie: inside, or in the next folder as others publish."""
    own = format.name in ("native", "adapted")
    return [root / folder] if own else [root / folder, root.parent / folder]


def _beside(root: Path, format: Format, energy: str) -> Path:
    folder = BESIDE[energy]
    places = beside(root, format, folder)
    for place in places:
        if place.is_dir():
            return place
    if energy == "nce" and format.name == "lightning":
        return root  # EDLM keeps both in one checkpoint
    what = "AR model" if folder == "ar" else "NCE energy"
    raise FileNotFoundError(
        f'no model at {" or ".join(map(str, places))}, where energy="{energy}" means the {what} '
        f'beside the denoiser: give the folder of one ("./{folder}" for one of that name here), '
        "or put both together by `edlm bundle`"
    )


def _require_size(tokenizer: Tokenizer, denoiser: Any, path: Path, format: Format) -> None:
    vocab_size, known = denoiser.vocab_size, tokenizer.vocab_size
    mask_last = denoiser.mask_id == vocab_size - 1
    exact = format.name in EXACT
    if known not in (vocab_size, vocab_size - mask_last) if exact else known > vocab_size:
        raise ValueError(
            f"{path} must hold the denoiser's {vocab_size} tokens, with the mask or without, "
            f"it holds {known}"
        )


def _require_denoiser(model: Any, place: Path, format: Format) -> None:
    if is_energy(model):
        raise ValueError(
            f"{place} must hold a denoiser, it is an NCE energy: give it as the energy"
        )
    if is_scorer(model):
        raise ValueError(
            f"{place} must hold a denoiser, it is a left-to-right model ({format.name}): give it "
            "as the energy, or make a denoiser of it by `edlm train adapt`"
        )
