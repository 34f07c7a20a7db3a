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
from edlm_engine.checkpoints.registry import Format, Request, find_format, is_scorer
from edlm_engine.checkpoints.tokenizer import Tokenizer, require_same_tokens
from edlm_engine.execution.dtype import fast_dtype
from edlm_engine.models import AutoregressiveTransformer, CausalLMScorer, DiT

# Pairs that come with the package, by name: their base weights are found on the machine.
NAMED_PAIRS = ("smollm2",)
BESIDE = ("ar", "coar")
# Formats whose vocabulary is that of the tokenizer, with the mask or without; others are padded.
EXACT = ("native", "mdlm", "lightning")

Scorer = AutoregressiveTransformer | CausalLMScorer


@dataclass(frozen=True)
class Bundle:
    """What belongs together for sampling; `ar` is the model behind an AR energy."""

    denoiser: Any  # a Denoiser
    ar: Any  # an AutoregressiveModel, or None
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
    format = find_format(place)
    if request.device_map is not None and format.name != "causal-lm":
        raise ValueError(
            "device_map is only for an energy that is a causal language model of transformers, "
            f"{place} is {format.name}"
        )
    model = format.load(place, replace(request, mask_id=None)).model
    if not is_scorer(model):
        raise ValueError(
            f"{place} must hold a left-to-right model, got a {type(model).__name__}: "
            "an energy scores whole sequences"
        )
    if isinstance(model, CausalLMScorer) and model.forbidden_id < 0 and mask_id is not None:
        model.forbidden_id = mask_id if mask_id < model.vocab_size else -1
    return model


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

    `path` is a folder with denoiser/ and perhaps ar/ and tokenizer.json, or the place of a denoiser
    with perhaps a tokenizer (see `locate`); None is the bundled model. `energy` is "ar" or "coar"
    for the AR model beside the denoiser, the place of another one ("./ar" for one of that name in
    the working directory), or None; "default" is "ar" for the bundled model and None elsewhere.
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
    with_ar = energy in BESIDE
    scorer: Path | None = None
    if energy is not None and not (with_ar and adapted):
        searched = None if source is None else replace(source, subfolder=None, revision=None)
        scorer = _beside(root, format, str(energy)) if with_ar else locate(energy, searched)
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
    return Bundle(denoiser, load_scorer(scorer, request, mask_id=denoiser.mask_id), tokenizer)


def _root(path: str | Path | None, source: Source | None) -> Path:
    if path is None:
        return BUNDLED
    if str(path) in NAMED_PAIRS and not Path(path).exists():
        return ASSETS / str(path)
    return locate(path, source)


def beside(root: Path, format: Format) -> list[Path]:
    """Where the AR model of a denoiser may lie: inside, or in the next folder as others publish."""
    own = format.name in ("native", "adapted")
    return [root / "ar"] if own else [root / "ar", root.parent / "ar"]


def _beside(root: Path, format: Format, energy: str) -> Path:
    places = beside(root, format)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f'no model at {" or ".join(map(str, places))}, where energy="{energy}" means the AR model '
        'beside the denoiser: give the folder of one ("./ar" for one of that name here), '
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
    if is_scorer(model):
        raise ValueError(
            f"{place} must hold a denoiser, it is a left-to-right model ({format.name}): give it "
            "as the energy, or make a denoiser of it by `edlm train adapt`"
        )
