"""Text <-> token ids by byte-level BPE or by characters: a thin layer over `tokenizers`."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from itertools import groupby
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPETokenizer

END_OF_TEXT = "<|endoftext|>"
UNKNOWN_MARK = "\u2588"
CHARACTERS = "characters"  # for a file: a tokenizer of the characters of the text
CHARACTERS_AT_ONCE = 1 << 16  # some 200 bytes of memory each


class Tokenizer:
    """Byte-level BPE with a token that ends documents and starts the autoregressive model.

    That token is `<|endoftext|>`, or `bos_id` where another model's tokenizer has another. Any text
    is encoded and decoded without loss where every byte is in the vocabulary, as here.

    One of characters (`of_characters`) has nothing but these: its texts are streams without ends,
    and `bos_id`, which starts the autoregressive model, is the id after the last, as the mask is.
    """

    def __init__(self, bpe: BPETokenizer, bos_id: int | None = None) -> None:
        if bos_id is None:
            bos_id = bpe.token_to_id(END_OF_TEXT)
        self._pieces = None
        if bos_id is None and all(len(token) == 1 for token in bpe.get_vocab()):
            bos_id, self._pieces = bpe.get_vocab_size(), CHARACTERS_AT_ONCE
        if bos_id is None:
            raise ValueError(f"the tokenizer must have the token {END_OF_TEXT}, it has none")
        self._bpe = bpe
        self.bos_id: int = bos_id

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are 0 .. vocab_size - 1. The mask of a denoiser is not one."""
        return self._bpe.get_vocab_size()

    @property
    def end_id(self) -> int | None:
        """The token that ends documents, None where none does."""
        return self.bos_id if self.bos_id is not None and self.bos_id < self.vocab_size else None

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no special token is put around it.

        Raises ValueError for characters that a tokenizer of characters does not have.
        """
        size = self._pieces or max(1, len(text))
        parts = (text[start : start + size] for start in range(0, len(text), size))
        return [i for part in parts for i in self._encode(part)]

    def _encode(self, text: str) -> list[int]:
        try:
            return self._bpe.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises plain Exception
            unknown = sorted(set(text) - self._bpe.get_vocab(True).keys())
            raise ValueError(
                f"text must be of tokens of the tokenizer, it has {unknown[:8]} ({error})"
            ) from error

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, None if it has none."""
        return self._bpe.token_to_id(token)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; one outside the vocabulary, such as the mask, shows as `\u2588`."""
        ids = list(map(int, ids))
        known = range(self.vocab_size)
        if all(map(known.__contains__, ids)):
            return self._bpe.decode(ids, skip_special_tokens=False)
        runs = groupby(ids, key=known.__contains__)
        # A run is decoded as a whole, since a character may be spread over several tokens.
        return "".join(self._text(list(run), inside) for inside, run in runs)

    def _text(self, ids: list[int], inside: bool) -> str:
        if inside:
            return self._bpe.decode(ids, skip_special_tokens=False)
        return UNKNOWN_MARK * len(ids)

    def save(self, path: str | Path) -> None:
        """Write one JSON file, complete or not at all."""
        temporary = Path(f"{path}.tmp")
        temporary.write_text(self._bpe.to_str(), encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def from_file(cls, path: str | Path, bos_id: int | None = None) -> Tokenizer:
        """Read a tokenizer.json, or a folder with one or with GPT-2's vocab.json and merges.txt.

        Raises FileNotFoundError when there is none, ValueError when the file cannot be read.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            return cls(_read(file), bos_id)
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return cls.from_gpt2(path / "vocab.json", path / "merges.txt")
        raise FileNotFoundError(
            f"no tokenizer at {path}: looked for {file}, and for vocab.json with merges.txt"
        )

    @classmethod
    def from_gpt2(cls, vocab_json: str | Path, merges_txt: str | Path) -> Tokenizer:
        """GPT-2's own two files."""
        for file in (vocab_json, merges_txt):
            if not Path(file).is_file():
                raise FileNotFoundError(f"no tokenizer file {file}")
        bpe = _byte_level(models.BPE.from_file(str(vocab_json), str(merges_txt)))
        bpe.add_special_tokens([END_OF_TEXT])
        return cls(bpe)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from texts; `<|endoftext|>` is id 0, the 256 bytes follow it."""
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be >= 257 (256 bytes and one), got {vocab_size}")
        bpe = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def of_characters(cls, texts: Iterable[str]) -> Tokenizer:
        """A token for each character that is in the texts, by code point from id 0."""
        characters = sorted(set().union(*texts))
        if not characters:
            raise ValueError("texts must hold a character, they are empty")
        level = BPETokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}))
        level.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        level.decoder = decoders.Fuse()
        return cls(level)


def require_same_tokens(path: Path, other: Path, ignored: Container[int]) -> None:
    """Raise ValueError unless tokens of the first file mean the same in the second, if both exist.

    Those that are `ignored`, the mask for one, may be missing there, and more tokens may follow.
    """
    if not (path.is_file() and other.is_file()):
        return
    tokens, others = _read(path).get_vocab(), _read(other).get_vocab()
    differ = sorted(
        (i, token) for token, i in tokens.items() if i not in ignored and others.get(token) != i
    )
    if differ:
        i, token = differ[0]
        got = f"token {others[token]}" if token in others else "absent"
        raise ValueError(
            f"{path} and {other} must be of one tokenizer, {len(differ)} tokens differ: "
            f"{token!r} is token {i} in the first, {got} in the second"
        )


def _read(file: Path) -> BPETokenizer:
    try:
        return BPETokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{file} is not a tokenizer file: {error}") from error


def _byte_level(model: models.BPE) -> BPETokenizer:
    bpe = BPETokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe
