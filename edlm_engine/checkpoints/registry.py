"""Which format a folder or file is in, and how a model is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from edlm_engine.checkpoints.files import CONFIG, read_json
from edlm_engine.checkpoints.weights import read_tensors, weight_file

# In the order in which they are asked: a layout known by its name before one known by its shape.
BUILT_IN = (
    "edlm_engine.checkpoints.formats.adapted:Adapted",
    "edlm_engine.checkpoints.formats.native:Native",
    "edlm_engine.checkpoints.formats.mdlm:MDLM",
    "edlm_engine.checkpoints.formats.lightning:Lightning",
    "edlm_engine.checkpoints.formats.smdm:SMDM",
    "edlm_engine.checkpoints.formats.diffugpt:DiffuGPT",
    "edlm_engine.checkpoints.formats.llada:LLaDA",
    "edlm_engine.checkpoints.formats.qwen:QwenDiffusion",
    "edlm_engine.checkpoints.formats.masked_lm:MaskedLanguageModel",
    "edlm_engine.checkpoints.formats.causal_lm:CausalLanguageModel",
)
GROUP = "edlm_engine.formats"


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a model is wanted.

    device: "meta" is without memory for the weights, to be looked at only.
    device_map: of transformers, for the blocks of a causal LM; other formats are not given one.
    blocks, head: dtypes of the transformer blocks, and of the head with the norm before it; None
        keeps the stored ones.
    fold: put a constant modulation into the weights where that can be.
    base: where the base of an adapted model lies. with_ar: bring it as the AR model.
    energy: of a training checkpoint that holds both, the NCE energy is wanted, not its denoiser.
    weights: of a training checkpoint, "ema" or "raw".
    mask_id: the mask token, for layouts that do not name it; None reads or infers it.
    """

    device: torch.device | str = "cpu"
    device_map: str | dict[str, Any] | None = None
    blocks: torch.dtype | None = None
    head: torch.dtype | None = None
    fold: bool = False
    base: str | Path | None = None
    with_ar: bool = False
    energy: bool = False
    weights: Literal["ema", "raw"] = "ema"
    mask_id: int | None = None

    def __post_init__(self) -> None:
        if self.weights not in ("ema", "raw"):
            raise ValueError(f'weights must be "ema" or "raw", got "{self.weights}"')

    @property
    def meta(self) -> bool:
        return torch.device(self.device).type == "meta"


@dataclass(frozen=True)
class Loaded:
    """What a format gives: a denoiser, left-to-right model or energy, and what lay beside it."""

    model: Any  # a Denoiser, an AutoregressiveModel or an EnergyModel, in eval mode
    tokenizer: Any = None
    ar: Any = None


class Format(Protocol):
    """One layout on disk.

    `name` stands in messages and in `edlm info`.
    """

    name: str

    def matches(self, place: Path) -> bool:
        """Whether a folder or file is in this layout, from its names and config.json alone."""
        ...

    def load(self, place: Path, request: Request) -> Loaded:
        """Read it, strictly: any key that is missing, unexpected or misshapen is a ValueError."""
        ...


@cache
def formats() -> tuple[Format, ...]:
    """All formats that are known, those of other packages first."""
    others = [point.load() for point in sorted(entry_points(group=GROUP), key=lambda e: e.name)]
    own = (line.split(":") for line in BUILT_IN)
    return tuple(cls() for cls in [*others, *(getattr(import_module(m), c) for m, c in own)])


def find_format(place: Path) -> Format:
    """The format of a folder or file; FileNotFoundError if there is none, ValueError if unknown."""
    if not place.exists():
        raise FileNotFoundError(f"no model at {place}: looked for {place / CONFIG}")
    for format in formats():
        if format.matches(place):
            return format
    if weight_file(place) is not None:
        read_tensors(place, meta=True)  # a damaged file is in no format: it says so itself
    known = ", ".join(format.name for format in formats())
    if place.is_dir() and not any(place.iterdir()):
        raise FileNotFoundError(f"no model at {place}: looked for {place / CONFIG}, it is empty")
    what = config_of(place).get("model_type") if place.is_dir() else place.suffix
    raise ValueError(
        f"no model at {place} in a format that is known: looked for {CONFIG} with weights beside "
        f"it, found {f'model_type {what!r}' if what and place.is_dir() else what or 'none'}; "
        f"formats: {known}"
    )


def config_of(place: Path) -> dict[str, Any]:
    """The config.json of a folder, or beside a file; empty without one."""
    path = (place if place.is_dir() else place.parent) / CONFIG
    return read_json(path) if path.is_file() else {}


def is_scorer(model: Any) -> bool:
    """Whether a model is left to right, and so an energy, and not a denoiser."""
    return hasattr(model, "first_position")


def is_energy(model: Any) -> bool:
    """Whether a model is the network of an NCE energy."""
    return hasattr(model, "energies")
