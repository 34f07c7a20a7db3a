"""Training checkpoints of MDLM and EDLM (Lightning .ckpt): diffusion, left to right, NCE energy.

The file is a pickle. Besides tensors it holds the run's configuration and tokenizer as objects of
other libraries; these are read as inert stand-ins, by an allow-list of those libraries, and any
other name in the file is refused. No code of the file, and none of those libraries, runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edlm_engine.checkpoints.dit_weights import Sizes, build, empty, finish, strip_prefix
from edlm_engine.checkpoints.formats.mdlm import refuse
from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request
from edlm_engine.checkpoints.weights import REMEDY, check_names, load_restricted

KINDS: tuple[type, ...] = (dict, list, set, tuple, int, str, float, bool, bytes)
PLAIN = {f"builtins.{kind.__name__}": kind for kind in KINDS}
# Libraries whose objects lie in such files. Nothing of them is imported.
STAND_IN_ROOTS = ("omegaconf", "transformers", "tokenizers", "typing", "collections", "pathlib")
PARAMETERIZATIONS = {"subs": False, "ar": True}  # -> left to right
ENERGY, TWICE = "ebm.", "backbone.ebm."
LEARNED = ("hf_dit", "dit")  # what the energy of such a run is


class StandIn:
    """In the place of an object of another library: keeps its state and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __new__(cls, *args: Any) -> StandIn:
        made = super().__new__(cls)
        made.state, made.items = None, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class Lightning:
    name = "lightning"

    def matches(self, place: Path) -> bool:
        return place.is_file() and place.suffix == ".ckpt"

    def load(self, place: Path, request: Request) -> Loaded:
        content = read_checkpoint(place)
        config = plain(content.get("hyper_parameters", {})).get("config", {})
        sizes, causal = _sizes(config, place)
        tensors = content["state_dict"]
        if request.meta:
            tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
        averaged = request.weights == "ema"
        if any(name.startswith(ENERGY) for name in tensors):
            if request.energy:
                _require_learned(config, place)
            tensors, prefix = _part(tensors, request.energy, place)
            averaged &= request.energy  # the denoiser was frozen, and has no others
        else:
            tensors, prefix = strip_prefix(tensors, place)
        if averaged:
            tensors = _averaged(tensors, content.get("ema"), sizes, request.mask_id, place)
        model = build(tensors, place, sizes, request.mask_id, prefix)
        if causal != hasattr(model, "first_position"):
            raise ValueError(
                f"{place}: its configuration says {'left to right' if causal else 'diffusion'}, "
                f"its weights are those of the other; {REMEDY}"
            )
        return Loaded(finish(model, request), find_tokenizer(place.parent))


def _require_learned(config: dict[str, Any], path: Path) -> None:
    if (kind := config.get("ebm_backbone", "hf_dit")) not in LEARNED:
        raise ValueError(
            f"{path}: ebm_backbone must be one of {list(LEARNED)}, a learned energy, got {kind!r}: "
            "give the denoiser and the AR model of that run apart"
        )


def _part(tensors: dict[str, Tensor], energy: bool, path: Path) -> tuple[dict[str, Tensor], str]:
    """The energy or the denoiser of a checkpoint of EDLM, and the prefix taken off its names.

    The energy stands there twice, as a part of the run and as one of the denoiser, which is the
    hub's class with a prefix of its own.
    """
    groups: dict[str, dict[str, Tensor]] = {ENERGY: {}, TWICE: {}, "": {}}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in groups if name.startswith(prefix))
        groups[prefix][name.removeprefix(prefix)] = tensor
    if groups[TWICE]:
        check_names("energy weights", set(groups[ENERGY]), set(groups[TWICE]), path, REMEDY)
    if energy:
        return groups[ENERGY], ENERGY
    once, outer = strip_prefix(groups[""], path)
    twice, inner = strip_prefix(once, path)
    return twice, outer + inner


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of the file, objects of the allowed libraries as stand-ins."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise ValueError(f"{path} is damaged or not a file of torch.save: {error}") from error
    allowed: list[tuple[Any, str]] = []
    for name in named:
        if name in PLAIN:
            allowed.append((PLAIN[name], name))
        elif name.split(".")[0] in STAND_IN_ROOTS:
            allowed.append((type("StandIn", (StandIn,), {}), name))
    content = load_restricted(path, allowed)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} must hold a state_dict, as Lightning writes it")
    return content


def plain(value: Any) -> Any:
    """A stand-in of a configuration as dictionaries, lists and values; others as they are."""
    if isinstance(value, StandIn):
        state = value.state
        state = state[0] if isinstance(state, tuple) and state else state
        if not isinstance(state, dict):
            return value
        for field in ("_content", "_val"):
            if field in state:
                return plain(state[field])
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _sizes(config: Any, path: Path) -> tuple[Sizes, bool]:
    """Sizes of the network, and whether it is left to right."""
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError(f"{path} must hold hyper_parameters with a config.model; {REMEDY}")
    model, algorithm = config["model"], {**config, **(config.get("algo") or {})}
    kind = algorithm.get("parameterization")
    refuse(path, (config.get("algo") or {}).get("name"), algorithm.get("diffusion"), kind)
    if kind not in PARAMETERIZATIONS:
        raise ValueError(
            f"{path}: parameterization must be one of {sorted(PARAMETERIZATIONS)}, got {kind!r}"
        )
    wanted = ("n_heads", "length", "hidden_size", "n_blocks")
    missing = [name for name in wanted if type(model.get(name)) is not int]
    if missing:
        raise ValueError(f"{path}: config.model must have integers {missing}")
    heads, length, width, blocks = (model[name] for name in wanted)
    sizes = Sizes(
        n_heads=heads,
        length=length,
        hidden_dim=width,
        n_blocks=blocks,
        time_conditioning=bool(algorithm.get("time_conditioning", False)),
        tied=bool(model.get("tie_word_embeddings", False)),
    )
    return sizes, PARAMETERIZATIONS[kind]


def _averaged(
    tensors: dict[str, Tensor], ema: Any, sizes: Sizes, mask_id: int | None, path: Path
) -> dict[str, Tensor]:
    """The averaged weights by name: the file keeps them as a list in the order of parameters."""
    shadows = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadows, list):
        raise ValueError(f'{path} has no ema.shadow_params: weights="raw" reads the others')
    names = [name for name, _ in empty(tensors, path, sizes, mask_id).named_parameters()]
    raw = '; weights="raw" reads the others'
    if len(shadows) != len(names):
        raise ValueError(
            f"{path}: ema.shadow_params must hold {len(names)} tensors, got {len(shadows)}{raw}"
        )
    for i, (name, shadow) in enumerate(zip(names, shadows, strict=True)):
        if name in tensors and tensors[name].shape != shadow.shape:
            raise ValueError(
                f"{path}: ema.shadow_params[{i}] must have the shape of {name}, "
                f"{list(tensors[name].shape)}, got {list(shadow.shape)}{raw}"
            )
    return {**tensors, **dict(zip(names, shadows, strict=True))}
