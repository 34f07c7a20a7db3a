"""Any causal language model of the transformers library as the scorer behind an AR energy."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm_engine.models.layers import cast_parameters, predict_next, require_tokens


class CausalLMScorer(nn.Module):
    """The interface of `AutoregressiveTransformer` around a transformers model.

    With `bos_id` that token is put in front and position 0 is scored; with None scoring starts at
    position 1. The model must have a plain linear head on its last hidden state: one that scales
    or caps its logits is refused with ValueError, since its scores would be others.

    Not captured in CUDA graphs, since some of these models wait for the device: set `capturable` to
    True on the scorer of one that does not (see `edlm_engine.execution.graphs`).
    """

    forbidden_id = -1

    def __init__(self, model: nn.Module, bos_id: int | None = None) -> None:
        super().__init__()
        self.model = model.eval()
        self.bos_id = bos_id
        self._require_plain_head()

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> CausalLMScorer:
        """Read a local folder; the BOS is the `bos_token_id` of its configuration, if it has one.

        `dtype=None` keeps the stored one. No network and no remote code.
        """
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ImportError(
                f"{directory} is a transformers model: pip install 'edlm_engine[hub]'"
            ) from error
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, dtype=dtype or "auto"
        )
        return cls(model.to(device), model.config.bos_token_id)

    @property
    def vocab_size(self) -> int:
        return len(self.head[0])

    @property
    def length(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def first_position(self) -> int:
        """First position whose token is scored: 0 with a BOS, else 1."""
        return 0 if self.bos_id is not None else 1

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """(weight [V, D], bias [V] or None): `logits = hidden @ weight.T + bias`."""
        linear = self.model.get_output_embeddings()
        return linear.weight, getattr(linear, "bias", None)

    def blocks_to(self, dtype: torch.dtype) -> CausalLMScorer:
        """Run all but the head in `dtype`; a head tied to the embedding gets its own weight."""
        linear = self.model.get_output_embeddings()
        linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        cast_parameters(self.model.base_model, dtype)
        return self

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [n, L] -> [n, L, D], where row l depends on tokens[:, :l] only.

        Without a BOS row 0 is zeros: nothing predicts the first token.
        """
        require_tokens(tokens, "tokens", self.length)
        return predict_next(self._states, tokens, self.bos_id)

    def logits(self, tokens: Tensor) -> Tensor:
        """Raw logits [n, L, V]; row l predicts token l."""
        return F.linear(self.hidden(tokens), *self.head)

    forward = logits

    def _states(self, seen: Tensor) -> Tensor:
        states = self.model.base_model(input_ids=seen, use_cache=False).last_hidden_state
        return states.to(self.head[0].dtype)

    @torch.no_grad()
    def _require_plain_head(self) -> None:
        probe = torch.zeros(1, 2, dtype=torch.int64, device=self.head[0].device)
        wanted = self.model(input_ids=probe, use_cache=False).logits
        got = F.linear(self._states(probe), *self.head)
        if wanted.shape != got.shape or not torch.allclose(wanted, got, rtol=1e-2, atol=1e-2):
            name = type(self.model).__name__
            raise ValueError(f"{name} does more to its logits than a linear head: not supported")
