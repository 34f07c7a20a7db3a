"""Tensors of published files: safetensors or torch's own, whole or in shards.

Pickles are read by torch's restricted unpickler alone, which knows tensors and plain containers and
imports nothing: what else a file asks for is refused by name and not run.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from edlm_engine.checkpoints.files import read_json

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *PICKLES)
MOST_NAMED = 8
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
REMEDY = "get the files again whole, from one and the same checkpoint"


def weight_file(place: Path) -> Path | None:
    """The file that holds a model's tensors, or the index of its shards; None if there is none.

    `place` is that file itself, or a folder with one under a usual name.
    """
    if place.is_file():
        return place if place.suffix in SUFFIXES else None
    found = (place / name for name in (SINGLE[0], INDEXES[0], SINGLE[1], INDEXES[1]))
    return next((path for path in found if path.is_file()), None)


def require_weight_file(place: Path) -> Path:
    """`weight_file`, or FileNotFoundError saying what was looked for."""
    path = weight_file(place)
    if path is None:
        raise FileNotFoundError(f"no weights at {place}: looked for {', '.join(SINGLE + INDEXES)}")
    return path


def read_tensors(place: Path, *, meta: bool = False) -> dict[str, Tensor]:
    """All tensors at a place, see `weight_file`, on the CPU and in the dtypes of the file.

    meta: without their memory (of safetensors only the headers are read). Raises FileNotFoundError
    for absent files, and ValueError for damaged ones, for pickles that hold more than tensors, and
    for shards that do not fit their index.
    """
    path = require_weight_file(place)
    if path.name not in INDEXES:
        return _read_file(path, meta)
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"{path} must hold a weight_map from names to files; {REMEDY}")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(listed.values())):
        shard = path.parent / file
        if Path(file).name != file:
            raise ValueError(f"{path} must name files beside itself, got {file!r}")
        if not shard.is_file():
            raise FileNotFoundError(f"no file {shard}, which {path.name} names; {REMEDY}")
        tensors |= _read_file(shard, meta)
    check_names("weights", set(listed), set(tensors), path)
    return tensors


def read_weights(place: Path, *, meta: bool = False) -> dict[str, Tensor]:
    """`read_tensors` of a place that must hold floating-point weights alone."""
    tensors = read_tensors(place, meta=meta)
    wrong = [f"{name} {t.dtype}" for name, t in tensors.items() if not t.is_floating_point()]
    if wrong:
        raise ValueError(f"{place} must hold floating-point weights, got {', '.join(wrong)}")
    return tensors


def _read_file(path: Path, meta: bool) -> dict[str, Tensor]:
    if path.suffix in PICKLES:
        tensors = read_pickle(path)
        return {name: t.to("meta") for name, t in tensors.items()} if meta else tensors
    try:
        if not meta:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            return {name: _empty(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _empty(stored: Any) -> Tensor:
    """A tensor of the shape and dtype of a stored one, without memory."""
    return torch.empty(stored.get_shape(), dtype=_TYPES[stored.get_dtype()], device="meta")


def tensor_names(place: Path) -> set[str]:
    """Names of the tensors at a place; none where `read_tensors` would report an error."""
    path = weight_file(place)
    try:
        if path is not None and path.name in INDEXES:
            return set(read_json(path)["weight_map"])
        return set(read_tensors(place, meta=True))
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return set()


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, which must hold nothing else."""
    content = load_restricted(path)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ValueError(f"{path} must hold tensors by name and nothing else")
    return content


def load_restricted(path: Path, stand_ins: Iterable[Any] = ()) -> Any:
    """`torch.load` that runs nothing: tensors, plain containers, and objects of `stand_ins`.

    stand_ins: pairs (class, "module.name") of what is made where the file names such an object.
    """
    try:
        with torch.serialization.safe_globals(list(stand_ins)):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("GLOBAL ")
        named = reason[1].split(" ")[0] if len(reason) > 1 else str(error).splitlines()[0]
        raise ValueError(
            f"{path} holds more than weights ({named}) and was not read: "
            "pickles can carry code; ask for safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged or not a file of torch.save: {error}") from error


def check_names(what: str, wanted: set[str], got: set[str], path: Path, remedy: str = "") -> None:
    """Raise ValueError naming what a file lacks and what it should not have."""
    missing, unexpected = sorted(wanted - got), sorted(got - wanted)
    if missing or unexpected:
        raise ValueError(
            f"{path} has missing {what} {_some(missing)}, unexpected {what} {_some(unexpected)}"
            + (f"; {remedy}" if remedy else "")
        )


def check_shapes(
    wanted: dict[str, torch.Size], tensors: dict[str, Tensor], path: Path, remedy: str = ""
) -> None:
    """Raise ValueError naming each of the tensors of a file whose shape is not the one wanted."""
    wrong = [
        f"{name} must be {list(wanted[name])}, got {list(tensor.shape)}"
        for name, tensor in sorted(tensors.items())
        if tensor.shape != wanted[name]
    ]
    if wrong:
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise ValueError(
            f"{path} has wrong shapes: {'; '.join(wrong[:MOST_NAMED])}{more}"
            + (f"; {remedy}" if remedy else "")
        )


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return f"{names[:MOST_NAMED]}" + (f" and {more} more" if more > 0 else "")
