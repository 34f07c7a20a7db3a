"""Parts shared by the denoiser and the autoregressive model, with the parameter names of MDLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
TIED_HEAD = "output_layer.linear.weight"


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes every transformer here has.

    `vocab_size` counts every row of the embedding, the mask included where the model has one;
    `length` is the longest sequence, shorter ones work too.
    """

    vocab_size: int
    length: int
    hidden_dim: int = 768
    n_blocks: int = 12
    n_heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "length", "hidden_dim", "n_blocks", "n_heads", "mlp_ratio"):
            require_positive(name, getattr(self, name))
        if self.hidden_dim % (2 * self.n_heads):
            raise ValueError(
                f"hidden_dim must be a multiple of 2 * n_heads = {2 * self.n_heads} "
                f"(rotary halves), got {self.hidden_dim}"
            )
        require_type("dropout", self.dropout, (int, float))
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        require_type("tie_word_embeddings", self.tie_word_embeddings, bool)


def require_positive(name: str, value: int) -> None:
    require_type(name, value, int)
    if value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def require_type(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """A truth value counts as no number, though Python thinks so."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be of type {wanted}, got {value!r}")


def require_tokens(tokens: Tensor, name: str, length: int) -> None:
    """`tokens` must be integers [n, l] with l <= length."""
    if tokens.dim() != 2 or tokens.shape[1] > length or tokens.is_floating_point():
        raise ValueError(
            f"{name} must be integers with shape [n, at most {length}], "
            f"got {tokens.dtype} {list(tokens.shape)}"
        )


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to `dtype` in place; buffers, the rotary frequencies, keep float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def predict_next(states: Callable[[Tensor], Tensor], tokens: Tensor, bos_id: int | None) -> Tensor:
    """tokens [n, L] -> [n, L, D] of a left-to-right model, row l from tokens[:, :l] only.

    `states` runs the model on the tokens it may see. Without a BOS row 0 is zeros: nothing predicts
    the first token.
    """
    seen = tokens[:, :-1]
    if bos_id is None:
        return F.pad(states(seen), (0, 0, 1, 0))
    return states(F.pad(seen, (1, 0), value=bos_id))


def split_prefix(tokens: Tensor, prefix: int, bos_id: int | None) -> tuple[Tensor, Tensor]:
    """What a left-to-right model sees of tokens [b, K, L] that share their first `prefix` over K.

    Returns the shared part [b, P], P = `prefix` with a BOS and one less without, and for each of
    b * K the rest, so that together they predict tokens as `predict_next` does. `prefix` must be
    greater than the first position that is scored, and less than L.
    """
    length = tokens.shape[-1]
    first = 0 if bos_id is not None else 1
    if not first < prefix < length:
        raise ValueError(f"prefix must be in ({first}, {length}), got {prefix}")
    seen = tokens[..., :-1]
    if bos_id is not None:
        seen = F.pad(seen, (1, 0), value=bos_id)
    return seen[:, 0, : prefix - first], seen[..., prefix - first :].flatten(0, 1)


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, hidden_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, hidden_dim))
        nn.init.normal_(self.embedding, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding)


class LayerNorm(nn.Module):
    """Layer norm without a bias (but see `FoldedDiT`); statistics are float32 for any input."""

    bias: nn.Parameter | None

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_dim))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, 1e-5)


class Rotary(nn.Module):
    """Rotary angles, half-split layout. `inv_freq` is saved because published weights hold it."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", ROTARY_BASE**-exponent)

    def _apply(self, fn, recurse: bool = True):
        # Stays float32 under `.to(bfloat16)`: with 8 bits, angles are off by radians near l = 500.
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != torch.float32 and not exact.is_meta:
            self.inv_freq = exact.to(self.inv_freq.device, torch.float32)
        return self

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [length, 1, 1, head_dim / 2]: broadcasts over (q or k, head)."""
        return self.at(torch.arange(length, device=self.inv_freq.device))

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The same at any places [...]: each [..., 1, 1, head_dim / 2]."""
        angle = (places.float()[..., None] * self.inv_freq)[..., None, None, :]
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def split_heads(
    qkv: Tensor, n_heads: int, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3 D], rows ordered (three, head, dim) -> q, k, v, each [B, heads, L, head_dim]."""
    qkv = qkv.unflatten(-1, (3, n_heads, -1))
    cos, sin = (angle.to(qkv.dtype) for angle in rotary)
    q, k = rotate(qkv[:, :, :2], cos, sin).transpose(1, 3).unbind(2)
    return q, k, qkv[:, :, 2].transpose(1, 2)


def attention(qkv: Tensor, n_heads: int, rotary: tuple[Tensor, Tensor], causal: bool) -> Tensor:
    """[B, L, 3 D] -> [B, L, D].

    Where a gradient is wanted on a CPU it is written out: the backward pass of torch's fused
    attention takes about twice as long there in 16 bits.
    """
    q, k, v = split_heads(qkv, n_heads, rotary)
    if qkv.requires_grad and qkv.device.type == "cpu":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        mixed = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Pre-norm transformer block."""

    causal = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.n_heads = config.n_heads
        self.norm1 = LayerNorm(dim)
        self.attn_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.norm2 = LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.mlp_ratio * dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_ratio * dim, dim),
        )
        self.dropout: nn.Module = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attend(self.norm1(x), rotary)
        return x + self.feed_forward(self.norm2(x))

    def attend(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        mixed = attention(self.attn_qkv(x), self.n_heads, rotary, self.causal)
        return self.dropout(self.attn_out(mixed))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.mlp(x))


class Output(nn.Module):
    """What follows the blocks: the last norm and the head."""

    norm_final: LayerNorm
    linear: nn.Linear


class Transformer(nn.Module):
    """What both models share: embedding, angles, blocks, final norm and head, optionally tied."""

    config: TransformerConfig
    vocab_embed: Embedding
    rotary_emb: Rotary
    blocks: Any  # an nn.ModuleList of Block, which torch types as one of any modules
    output_layer: Output

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def length(self) -> int:
        return self.config.length

    @property
    def capturable(self) -> bool:
        """CUDA graphs may replay it: in eval mode, without dropout.

        See `edlm_engine.execution.graphs`.
        """
        return not self.training

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """(weight [V, D], bias [V]): `logits = hidden @ weight.T + bias`."""
        return self.output_layer.linear.weight, self.output_layer.linear.bias

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the blocks, in their dtype."""
        return self.vocab_embed(tokens).to(self.blocks[0].attn_qkv.weight.dtype)

    def blocks_to(self, dtype: torch.dtype) -> Transformer:
        """Run the blocks in `dtype`; the embedding, the last norm and the head keep theirs.

        With bfloat16 blocks under a float32 head nothing rounds the logits to 8 bits.
        """
        cast_parameters(self.blocks, dtype)
        return self

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """tokens [n, l] -> [n, l, D], the blocks (without conditioning) and last norm."""
        rotary = self.rotary_emb(tokens.shape[1])
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, rotary)
        return self.final_norm(x)

    def final_norm(self, x: Tensor) -> Tensor:
        """The norm before the head, in the head's dtype."""
        norm = self.output_layer.norm_final
        return norm(x.to(norm.weight.dtype))

    def tie_head(self) -> None:
        """Make the head's weight the embedding itself, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.output_layer.linear.weight = self.vocab_embed.embedding
