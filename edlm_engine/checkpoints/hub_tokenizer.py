"""Tokenizers of Hugging Face folders, and the special tokens that they name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from edlm_engine.checkpoints.files import TOKENIZER, read_json
from edlm_engine.checkpoints.hub import CHAT_TEMPLATE, VOCABULARIES, Source, locate
from edlm_engine.checkpoints.tokenizer import END_OF_TEXT, Tokenizer

# Classes that only remote code has -> those of transformers that read the same files.
SAME_AS = {"DreamTokenizer": "Qwen2Tokenizer"}
NAMES = ("bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "unk_token", "mask_token")


class HubTokenizer(Tokenizer):
    """As `Tokenizer`, for any kind of vocabulary, with the special tokens by name.

    `special` maps the names of transformers ("mask_token", "bos_token", ...) to ids, `special_ids`
    holds every token that is marked as special. `bos_id` is None where the tokenizer names none.
    `chat_template` is that of its folder, None without one.
    """

    bos_id: int | None  # type: ignore[assignment]

    def __init__(self, backend: Any, named: dict[str, str], folder: Path) -> None:
        ids = {name: backend.token_to_id(token) for name, token in named.items()}
        self.special: dict[str, int] = {name: i for name, i in ids.items() if i is not None}
        added = backend.get_added_tokens_decoder()
        marked = {i for i, token in added.items() if token.special}
        self.special_ids = sorted(marked | set(self.special.values()))
        start = self.special.get("bos_token", backend.token_to_id(END_OF_TEXT))
        super().__init__(backend, -1 if start is None else start)
        self.bos_id = start
        self._named = {name: token for name, token in named.items() if name in self.special}
        self._folder = folder
        # Some vocabularies have holes: ids reach further than the number of tokens.
        self._rows = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._rows

    @cached_property
    def chat_template(self) -> str | None:
        """The jinja text of the folder; ValueError for a file that holds none."""
        file, config = self._folder / CHAT_TEMPLATE, self._folder / "tokenizer_config.json"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = read_json(config).get("chat_template") if config.is_file() else None
        if isinstance(template, list):  # several by name
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        if not isinstance(template, str | None):
            raise ValueError(f"{config} must hold a chat_template of text, got {template!r}")
        return template

    def apply_chat_template(self, messages: list[Any], **options: Any) -> list[int]:
        """Ids of messages by `chat_template`, which transformers renders in its sandbox.

        options: as of the method of that name in transformers, but for how ids are returned.
        """
        try:
            from transformers import PreTrainedTokenizerFast
        except ImportError as error:
            raise ImportError("chat templates need pip install 'edlm_engine[hub]'") from error
        # It renders only: the ids are to be those of this very tokenizer.
        renderer = PreTrainedTokenizerFast(tokenizer_object=Backend(WordLevel()), **self._named)
        text = renderer.apply_chat_template(
            messages, **{**options, "chat_template": self.chat_template, "tokenize": False}
        )
        return self.encode(text)


@dataclass
class _Slow:
    """A tokenizer of transformers that is plain Python, with the methods of `tokenizers`."""

    tokenizer: Any

    @dataclass
    class Encoded:
        ids: list[int] = field(default_factory=list)

    def encode(self, text: str, add_special_tokens: bool) -> Encoded:
        return self.Encoded(
            list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        )

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    def token_to_id(self, token: str) -> int | None:
        return self.tokenizer.get_vocab().get(token)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return self.tokenizer.added_tokens_decoder

    def to_str(self) -> str:
        raise ValueError("this tokenizer has no tokenizer.json: save it with transformers")


def find_tokenizer(place: Path) -> HubTokenizer | None:
    """The tokenizer of a folder, None if it has none; ValueError for files that cannot be read.

    A tokenizer.json is read by `tokenizers` alone; other files by the class of transformers that
    tokenizer_config.json names, from the folder and without remote code.
    """
    folder = place if place.is_dir() else place.parent
    file = folder / TOKENIZER
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} must be a file, it is a folder")
    if file.is_file():
        try:
            return HubTokenizer(Backend.from_file(str(file)), _named(folder), folder)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{file} is not a tokenizer file: {error}") from error
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return None
    return _by_transformers(folder)


def load_tokenizer(name: str | Path, source: Source | None = None) -> HubTokenizer:
    """The tokenizer of a folder, file or hub id; FileNotFoundError if there is none."""
    place = locate(name, source, tokenizer=True)
    tokenizer = find_tokenizer(place)
    if tokenizer is None:
        raise FileNotFoundError(f"no tokenizer at {place}: looked for {TOKENIZER}")
    return tokenizer


def _by_transformers(folder: Path) -> HubTokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError(
            f"{folder} has a tokenizer of transformers: pip install 'edlm_engine[hub]'"
        ) from error
    config = folder / "tokenizer_config.json"
    named_class = read_json(config).get("tokenizer_class") if config.is_file() else None
    try:
        cls = AutoTokenizer
        if named_class in SAME_AS:
            cls = getattr(import_module("transformers"), SAME_AS[named_class])
        tokenizer = cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds, by the files that are there
        raise ValueError(f"{folder} has a tokenizer that cannot be read: {error}") from error
    named = {name: getattr(tokenizer, name) for name in NAMES}
    named = {name: str(token) for name, token in named.items() if token is not None}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    plain = backend if isinstance(backend, Backend) else _Slow(tokenizer)
    return HubTokenizer(plain, named, folder)


def _named(folder: Path) -> dict[str, str]:
    """Special tokens by name, from the two files that may hold them."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            for key, token in read_json(folder / name).items():
                text = token.get("content") if isinstance(token, dict) else token
                if key in NAMES and isinstance(text, str):
                    named[key] = text
    return named
