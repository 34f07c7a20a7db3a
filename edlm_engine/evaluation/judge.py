"""An independent judge of text: nats per byte under any left-to-right model with its tokenizer.

Per byte, so that texts of one tokenizer can be judged by a model of another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edlm_engine import ops
from edlm_engine.checkpoints.adapted import base_tokenizer
from edlm_engine.checkpoints.base import BASES, find_base
from edlm_engine.checkpoints.hub import locate
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.engine import Engine
from edlm_engine.models.causal_lm import CausalLMScorer

DEFAULT = "smollm2"
# Tokens per call, padding included; at least one text.
BATCH_TOKENS = 2048
# Rounding to bfloat16 moves a weight by no more than this part of it.
ROUNDED = 2.0**-7
COMPARED_ROWS = 1024


@dataclass(frozen=True)
class Judge:
    """A left-to-right model that scores position 0, and its tokenizer."""

    model: CausalLMScorer
    tokenizer: Tokenizer
    name: str = "judge"

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Judge:
        """A known base ("smollm2"), or a causal language model of transformers with its tokenizer:
        a folder, an id of the hub, or a GGUF file.

        `dtype` is of its blocks, the head stays in float32. A document's end token stands in front
        of each text, where the tokenizer has one; otherwise the model's own BOS. Raises as
        `find_base`, `locate` and `read_causal_lm` do, and ValueError where the model has neither.
        """
        place = find_base(str(name)) if str(name) in BASES else locate(name)
        model = CausalLMScorer.from_pretrained(place, device=device, dtype=torch.float32)
        if dtype != torch.float32:
            model.blocks_to(dtype)
        tokenizer = base_tokenizer(place, model.bos_id or 0)
        end = tokenizer.token_id("<|endoftext|>")
        if end is None and model.bos_id is None:
            raise ValueError(f"judge {name} must have a BOS or <|endoftext|>, it has neither")
        if end is not None:
            model.bos_id = end
        return cls(model, tokenizer, str(name))

    @torch.inference_mode()
    def nats(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        """-log p of each text's tokens: [n] float64 on the CPU.

        Raises ValueError for a text longer than the judge reads.
        """
        weight, bias = self.model.head
        nats = torch.zeros(len(texts), dtype=torch.float64)
        for rows, tokens, valid in self._batches(texts, progress):
            hidden = self.model.hidden(tokens)[valid]
            log_p = ops.head_token_log_probs(hidden, weight, tokens[valid], bias=bias)
            owner = rows[valid.nonzero()[:, 0].cpu()]
            nats.index_add_(0, owner, -log_p.double().cpu())
        return nats

    def nats_per_byte(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        """-log p of each text's tokens over its UTF-8 bytes: [n] float64 on the CPU.

        Raises ValueError for an empty text, which has no rate, and as `nats`.
        """
        empty = [i for i, text in enumerate(texts) if not text]
        if empty:
            raise ValueError(f"texts must not be empty, texts {empty} are")
        sizes = torch.tensor([len(text.encode("utf-8")) for text in texts], dtype=torch.float64)
        return self.nats(texts, progress=progress) / sizes

    @torch.inference_mode()
    def features(self, texts: Sequence[str]) -> Tensor:
        """The judge's last hidden state after each text: [n, D] float32 on the CPU."""
        features = torch.zeros(len(texts), self.model.head[0].shape[1])
        for rows, tokens, valid in self._batches(texts, False, room=1):
            # Row l has seen the tokens before l, so one more token is put behind the text.
            states = self.model.hidden(torch.nn.functional.pad(tokens, (0, 1)))
            last = valid.sum(1)
            features[rows] = states[torch.arange(len(rows)), last].float().cpu()
        return features

    def _batches(
        self, texts: Sequence[str], progress: bool, room: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Texts of like length together: (their places, tokens [b, l] padded behind, which are
        real). What is behind a token does not change what a causal model says of it."""
        encoded = [self.tokenizer.encode(text) for text in texts]
        longest = self.model.length - 1 - room  # the token in front
        for i, ids in enumerate(encoded):
            if len(ids) > longest:
                raise ValueError(
                    f"texts must have at most {longest} tokens of the judge {self.name}, "
                    f"text {i} has {len(ids)}"
                )
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        device = self.model.head[0].device
        with tqdm(total=len(texts), desc="judge", unit="text", disable=not progress) as bar:
            while order:
                count = max(1, min(len(order), BATCH_TOKENS // max(1, len(encoded[order[-1]]))))
                rows, order = order[-count:], order[:-count]
                width = max(1, len(encoded[rows[-1]]))
                sizes = torch.tensor([len(encoded[i]) for i in rows])
                tokens = torch.tensor([encoded[i] + [0] * (width - len(encoded[i])) for i in rows])
                valid = torch.arange(width) < sizes[:, None]
                yield torch.tensor(rows), tokens.to(device), valid.to(device)
                bar.update(count)


def independent_judge(name: str | Path | None, engines: Sequence[Engine], **options: Any) -> Judge:
    """The judge of that name (None: SmolLM2), which must be no model of the engines.

    A model that has a hand in the text would judge its own choices. Models are told apart by their
    output weights, so that a copy under another name is seen too. Raises ValueError that says what
    to do, and as `Judge.load`.
    """
    advice = (
        "give --judge a causal language model of transformers that had no part in these texts (a "
        'folder, a hub id such as gpt2, or a GGUF file; any tokenizer will do), or "none"'
    )
    try:
        judge = Judge.load(DEFAULT if name is None else name, **options)
    except (FileNotFoundError, ImportError) as error:
        if name is not None:
            raise
        raise ValueError(f"there is no independent judge here: {error}; {advice}") from error
    for engine in engines:
        parts = getattr(engine.energy, "parts", (engine.energy,))  # of a sum of energies
        models = [("energy", getattr(part, "model", None)) for part in parts]
        for role, model in (*models, ("denoiser", engine.denoiser)):
            if shares_head(judge.model, model):
                raise ValueError(f"{judge.name} is the {role}'s own model, or its base: {advice}")
    return judge


def shares_head(model: Any, other: Any) -> bool:
    """Whether two models have one output layer: equal up to bfloat16, over their first tokens."""
    if not (hasattr(model, "head") and hasattr(other, "head")):
        return False
    heads: list[Tensor] = [model.head[0], other.head[0]]
    if heads[0].shape[1] != heads[1].shape[1]:
        return False
    rows = min(COMPARED_ROWS, *map(len, heads))
    first, second = (head[:rows].detach().float().cpu() for head in heads)
    return bool(((first - second).abs() <= ROUNDED * first.abs() + 1e-6).float().mean() > 0.99)


def standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))
