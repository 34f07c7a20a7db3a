"""The left-to-right transformer whose likelihood is the energy of EDLM-AR (equation 9)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm_engine.models.layers import (
    Block,
    Embedding,
    LayerNorm,
    Output,
    Rotary,
    Transformer,
    TransformerConfig,
    predict_next,
    require_tokens,
    require_type,
    split_heads,
    split_prefix,
)


@dataclass(frozen=True, kw_only=True)
class ARConfig(TransformerConfig):
    """Sizes of an `AutoregressiveTransformer`.

    `bos_id` is the token put in front so that position 0 is scored; None where the model was
    trained without one. `forbidden_id` is a token the model never emits, -1 for none.
    """

    bos_id: int | None = None
    forbidden_id: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_type("bos_id", self.bos_id, (int, type(None)))
        require_type("forbidden_id", self.forbidden_id, int)
        if self.bos_id is not None and not 0 <= self.bos_id < self.vocab_size:
            raise ValueError(f"bos_id must be None or in [0, {self.vocab_size}), got {self.bos_id}")
        if not -1 <= self.forbidden_id < self.vocab_size:
            raise ValueError(
                f"forbidden_id must be -1 or in [0, {self.vocab_size}), got {self.forbidden_id}"
            )


class ARBlock(Block):
    causal = True

    def after_prefix(
        self, prefix: Tensor, rest: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The block on prefix [b, P, D] and rest [b * K, R, D], K of which go on from each."""
        length, copies = prefix.shape[1], len(rest) // len(prefix)
        before, after = zip(
            *(angle.split((length, rest.shape[1])) for angle in rotary), strict=True
        )
        q, k, v = split_heads(self.attn_qkv(self.norm1(prefix)), self.n_heads, before)
        prefix = self._mix(prefix, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        q, *new = split_heads(self.attn_qkv(self.norm1(rest)), self.n_heads, after)
        k, v = (
            torch.cat((seen.repeat_interleave(copies, 0), own), dim=2)
            for seen, own in zip((k, v), new, strict=True)
        )
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(length)
        return prefix, self._mix(rest, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _mix(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.attn_out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class AROutput(Output):
    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_dim)
        self.linear = nn.Linear(config.hidden_dim, config.vocab_size)


class AutoregressiveTransformer(Transformer):
    """Scores whole sequences: row l of `hidden` predicts token l from the tokens before it.

    Rows before `first_position` are defined but carry no prediction. Deterministic in eval mode.
    """

    config: ARConfig

    def __init__(self, config: ARConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_dim)
        self.rotary_emb = Rotary(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(ARBlock(config) for _ in range(config.n_blocks))
        self.output_layer = AROutput(config)
        nn.init.zeros_(self.output_layer.linear.bias)
        self.tie_head()

    @property
    def bos_id(self) -> int | None:
        return self.config.bos_id

    @property
    def forbidden_id(self) -> int:
        return self.config.forbidden_id

    @property
    def first_position(self) -> int:
        """First position whose token is scored: 0 with a BOS, else 1."""
        return 0 if self.bos_id is not None else 1

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [n, L] -> [n, L, D], where row l depends on tokens[:, :l] only.

        Without a BOS row 0 is zeros: nothing predicts the first token.
        """
        require_tokens(tokens, "tokens", self.length)
        return predict_next(self.run_blocks, tokens, self.bos_id)

    def hidden_after_prefix(self, tokens: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """`hidden` of tokens [b, K, L] that share their first `prefix` over K, without dropout.

        Returns the rows of those positions [b, prefix, D], computed once for all K, and the others
        [b, K, L - prefix, D]: up to rounding the values of `hidden`. `prefix` must lie between
        `first_position` + 1 and L - 1.
        """
        groups, candidates, _ = tokens.shape
        first = self.first_position
        parts = split_prefix(tokens, prefix, self.bos_id)
        rotary = self.rotary_emb(tokens.shape[-1] - first)
        known, rest = map(self.embed, parts)
        for block in self.blocks:
            known, rest = block.after_prefix(known, rest, rotary)
        known, rest = self.final_norm(known), self.final_norm(rest)
        return F.pad(known, (0, 0, first, 0)), rest.unflatten(0, (groups, candidates))

    def logits(self, tokens: Tensor) -> Tensor:
        """Raw logits [n, L, V]; row l predicts token l. The caller excludes `forbidden_id`."""
        return self.output_layer.linear(self.hidden(tokens))

    forward = logits
