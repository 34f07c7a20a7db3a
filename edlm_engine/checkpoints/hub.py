"""Where a model lies: a path on this machine, or an id of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edlm_engine.checkpoints.files import CONFIG, TOKENIZER
from edlm_engine.checkpoints.weights import SUFFIXES, weight_file

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ID = re.compile(rf"(?P<repo>{NAME}(?:/{NAME})?)(?P<inside>(?:/{NAME})*)")
ADAPTER = "adapter_model.safetensors"
CHAT_TEMPLATE = "chat_template.jinja"
VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
# By name and not by ending: a repository may hold folders of other models, which "*" reaches into.
SIDECARS = (
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    CHAT_TEMPLATE,
    "added_tokens.json",
    "merges.txt",
    *VOCABULARIES,
)
WHOLE = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_*",
    "denoiser/*",
    "ar/*",
    "energy/*",
)
PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
FILES = "config.json, model.safetensors (or its shards with their index) and tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """How to look for a model, in the words of huggingface_hub.

    subfolder: inside the repository or folder. revision: a branch, tag or commit.
    local_files_only: never ask the network; so does HF_HUB_OFFLINE. cache_dir: instead of the
    usual cache.
    """

    subfolder: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    cache_dir: str | Path | None = None


def locate(name: str | Path, source: Source | None = None, *, tokenizer: bool = False) -> Path:
    """The folder or file of a model: a path that exists, else an id of the hub.

    An id may go on with a folder or file of the repository: "org/name/folder". The cache is looked
    into first, then the network is asked unless that is forbidden. `tokenizer` asks for its files
    alone. Raises FileNotFoundError saying where was looked and which files to bring.
    """
    source = source or Source()
    path = Path(name)
    if path.exists():
        place = path / source.subfolder if source.subfolder else path
        if not place.exists():
            raise FileNotFoundError(f"no model at {place}: {path} has no {source.subfolder}")
        return place
    match = ID.fullmatch(str(name))
    inside_a_folder = path.parent.is_dir() and path.parent != Path(".")
    if match is None or inside_a_folder:
        raise FileNotFoundError(f"no model at {path}: looked for {path / CONFIG}")
    inside = PurePosixPath(source.subfolder or ".") / match["inside"].lstrip("/")
    return _from_hub(match["repo"], inside, source, tokenizer)


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _from_hub(repo: str, inside: PurePosixPath, source: Source, tokenizer: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise FileNotFoundError(
            f"no model at {repo}: no such folder, and for the hub pip install 'edlm_engine[hub]'"
        ) from error
    what = "tokenizer" if tokenizer else "model"
    one_file = inside.suffix in (*SUFFIXES, ".gguf")
    folder = "" if inside == PurePosixPath(".") else f"{inside}/"

    def fetch(patterns: tuple[str, ...], local: bool) -> Path:
        wanted = [f"{folder}{pattern}" for pattern in patterns]
        if one_file:
            side = "" if inside.parent == PurePosixPath(".") else f"{inside.parent}/"
            wanted = [str(inside), *(f"{side}{pattern}" for pattern in SIDECARS)]
        got = snapshot_download(
            repo,
            allow_patterns=wanted,
            local_files_only=local,
            revision=source.revision,
            cache_dir=source.cache_dir,
        )
        return Path(got) / inside

    try:
        try:
            place = fetch(SIDECARS if tokenizer else (*SIDECARS, *WHOLE), True)
            if _whole(place, tokenizer):
                return place
        except LocalEntryNotFoundError:
            pass
        if source.local_files_only or offline():
            raise LocalEntryNotFoundError("the network is not asked")
        for patterns in (SIDECARS,) if tokenizer else ((*SIDECARS, *WHOLE), PICKLED):
            place = fetch(patterns, False)
            if _whole(place, tokenizer):
                return place
        raise LocalEntryNotFoundError(f"it has no {what} there")
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        target = f"{repo}/{inside}".removesuffix("/.")
        files = str(inside) if one_file else "tokenizer.json" if tokenizer else FILES
        raise FileNotFoundError(
            f"no {what} at {target}: no such file or folder here, and not to be had from the hub "
            f"({str(error).splitlines()[0]}). Looked in {source.cache_dir or HF_HUB_CACHE}. "
            f"Where there is a network, `hf download {repo}` fills that cache; or bring {files} "
            f"from huggingface.co/{repo} into a folder and give its path"
        ) from error


def _whole(place: Path, tokenizer: bool) -> bool:
    """Whether a model's weights are there, or a tokenizer's files."""
    if tokenizer:
        return place.is_dir() and any(
            (place / name).is_file() for name in (TOKENIZER, *VOCABULARIES)
        )
    if place.is_file():
        return True
    inside = (place, place / "denoiser")
    return any(weight_file(folder) or (folder / ADAPTER).is_file() for folder in inside)
