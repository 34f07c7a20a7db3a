"""An independent judge of text: nats per byte under any left-to-right model with its tokenizer.

Per byte, so that texts of one tokenizer can be judged by a model of another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from edlm_engine.checkpoints.adapted import base_tokenizer
from edlm_engine.checkpoints.base import find_base
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.models.causal_lm import CausalLMScorer


@dataclass(frozen=True)
class Judge:
    """A left-to-right model that scores position 0, and its tokenizer."""

    model: CausalLMScorer
    tokenizer: Tokenizer

    @classmethod
    def load(cls, name: str | Path, *, device: torch.device | str = "cpu") -> Judge:
        """A known base ("smollm2"), a folder of transformers with its tokenizer, or a GGUF file.

        A document's end token stands in front of each text, where the tokenizer has one; otherwise
        the model's own BOS. Raises as `find_base` and `read_causal_lm` do, and ValueError where the
        model has neither.
        """
        place = find_base(str(name))
        model = CausalLMScorer.from_pretrained(place, device=device, dtype=torch.float32)
        tokenizer = base_tokenizer(place, model.bos_id or 0)
        end = tokenizer.token_id("<|endoftext|>")
        if end is None and model.bos_id is None:
            raise ValueError(f"judge {name} must have a BOS or <|endoftext|>, it has neither")
        if end is not None:
            model.bos_id = end
        return cls(model, tokenizer)

    @torch.inference_mode()
    def nats_per_byte(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        """-log p of each text's tokens over its UTF-8 bytes: [n] float64 on the CPU.

        Raises ValueError for an empty text, which has no rate.
        """
        empty = [i for i, text in enumerate(texts) if not text]
        if empty:
            raise ValueError(f"texts must not be empty, texts {empty} are")
        rates = []
        for text in tqdm(texts, desc="judge", unit="text", disable=not progress):
            tokens = torch.tensor([self.tokenizer.encode(text)], device=self.model.head[0].device)
            log_p = sequence_log_probs(self.model, tokens).item()
            rates.append(-log_p / len(text.encode("utf-8")))
        return torch.tensor(rates, dtype=torch.float64)


def standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))
