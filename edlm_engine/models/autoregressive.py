"""The left-to-right transformer whose likelihood is the energy of EDLM-AR (equation 9)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm_engine.models.kv_cache import KVCache, cache_length
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

    def after_cached(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache, layer: int
    ) -> Tensor:
        """The block on x [rows, count, D], a step that the cache has begun."""
        q, *new = split_heads(self.attn_qkv(self.norm1(x)), self.n_heads, rotary)
        k, v = cache.write(layer, *new)
        return self._mix(x, F.scaled_dot_product_attention(q, k, v, attn_mask=cache.mask))

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

    def start_cache(self, rows: int, length: int | None = None) -> KVCache:
        """An empty cache for `hidden_step` on `rows` sequences of up to `length` tokens.

        `length=None` is the model's. It takes 2 * rows * n_blocks * length * D numbers of the
        blocks' dtype, allocated by the first step.
        """
        length = cache_length(length, self.length)
        return KVCache(rows, length, self.bos_id, self.head[0].device)

    @torch.no_grad()
    def hidden_step(self, tokens: Tensor, cache: KVCache, start: Tensor, count: int) -> Tensor:
        """Rows `start` to `start` + `count` - 1 of `hidden` of tokens [rows, L]: [rows, count, D].

        Equal to `hidden` up to rounding, if the cache was last given the same tokens before
        `start`. Only `count` positions go through the blocks. `start` [rows] int64 is each
        sequence's own: at least `first_position` and at most one more than the last row that the
        cache was asked for. A smaller one takes back what was cached from there on. Rows from L on
        are finite and mean nothing. No dropout, no gradient.

        Raises ValueError for shapes that do not fit the cache, and on CPU for a `start` out of
        range; on CUDA, which must not wait for the host, that is the caller's to see to.
        """
        require_tokens(tokens, "tokens", self.length)
        given, places = cache.begin(tokens, start, count)
        rotary = self.rotary_emb.at(places)
        x = self.embed(given)
        for layer, block in enumerate(self.blocks):
            x = block.after_cached(x, rotary, cache, layer)
        return self.final_norm(x)

    def logits(self, tokens: Tensor) -> Tensor:
        """Raw logits [n, L, V]; row l predicts token l. The caller excludes `forbidden_id`."""
        return self.output_layer.linear(self.hidden(tokens))

    forward = logits
