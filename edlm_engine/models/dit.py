"""The MDLM denoiser: a bidirectional transformer with adaptive layer norm (DiT)."""

from __future__ import annotations

import math
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
    require_positive,
    require_tokens,
    require_type,
)

FREQUENCIES = 128


@dataclass(frozen=True, kw_only=True)
class DiTConfig(TransformerConfig):
    """Sizes of a `DiT`. `vocab_size` includes the mask; `mask_id` is usually its last row."""

    mask_id: int
    cond_dim: int = 128
    time_conditioning: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("cond_dim", self.cond_dim)
        require_type("mask_id", self.mask_id, int)
        require_type("time_conditioning", self.time_conditioning, bool)
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be >= 2, the mask counted, got {self.vocab_size}")
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"mask_id must be in [0, {self.vocab_size}), got {self.mask_id}")


class SigmaEmbedding(nn.Module):
    """Noise level [B] -> conditioning vector [B, cond_dim]."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )

    def forward(self, sigma: Tensor) -> Tensor:
        step = torch.arange(FREQUENCIES, device=sigma.device, dtype=torch.float32) / FREQUENCIES
        angle = sigma.float()[:, None] * torch.exp(-math.log(10_000.0) * step)
        waves = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return F.silu(self.mlp(waves.to(next(self.parameters()).dtype)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def modulation(cond_dim: int, width: int) -> nn.Linear:
    """Zero at the start, so that every block begins as the identity."""
    layer = nn.Linear(cond_dim, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class DiTBlock(Block):
    """A block under the conditioning c [B, cond_dim], which it takes as one more argument."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.adaLN_modulation = modulation(config.cond_dim, 6 * config.hidden_dim)

    def forward(  # type: ignore[override]
        self, x: Tensor, rotary: tuple[Tensor, Tensor], c: Tensor
    ) -> Tensor:
        parts = self.adaLN_modulation(c.to(x.dtype))[:, None].chunk(6, dim=-1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parts
        x = x + gate_msa * self.attend(modulate(self.norm1(x), shift_msa, scale_msa), rotary)
        return x + gate_mlp * self.feed_forward(modulate(self.norm2(x), shift_mlp, scale_mlp))


class DiTOutput(Output):
    def __init__(self, config: DiTConfig, width: int) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_dim)
        self.linear = nn.Linear(config.hidden_dim, width)
        self.adaLN_modulation = modulation(config.cond_dim, 2 * config.hidden_dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return modulate(self.norm_final(x.to(self.norm_final.weight.dtype)), shift, scale)


class DiT(Transformer):
    """Denoiser p(x0 | xt) of masked diffusion, the architecture and parameter names of MDLM.

    Follows the `Denoiser` protocol. Logits are raw: the caller excludes `mask_id`, normalises, and
    keeps the tokens that are not masked (SUBS). Deterministic in eval mode.
    """

    config: DiTConfig
    output_layer: DiTOutput

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_dim)
        self.sigma_map = SigmaEmbedding(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.n_blocks))
        self.output_layer = DiTOutput(config, config.vocab_size)
        nn.init.zeros_(self.output_layer.linear.bias)
        self.tie_head()

    @property
    def mask_id(self) -> int:
        return self.config.mask_id

    def hidden(self, xt: Tensor, sigma: Tensor) -> Tensor:
        """The input of the head.

        Args:
            xt: tokens [B, L], any L up to `length`, `mask_id` where unknown.
            sigma: total noise [B], float. Ignored (taken as 0) without time conditioning.

        Returns:
            [B, L, D], after the final norm and modulation; `hidden @ weight.T + bias` are logits.
        """
        require_tokens(xt, "xt", self.length)
        if not self.config.time_conditioning:
            # The conditioning is then one constant, and batch 1 broadcasts.
            sigma = torch.zeros(1, device=xt.device)
        c = self.sigma_map(sigma)
        rotary = self.rotary_emb(xt.shape[1])
        x = self.embed(xt)
        for block in self.blocks:
            x = block(x, rotary, c)
        return self.output_layer(x, c)

    def logits(self, xt: Tensor, sigma: Tensor) -> Tensor:
        """Raw logits [B, L, V] for tokens xt [B, L] at noise sigma [B]."""
        return self.output_layer.linear(self.hidden(xt, sigma))

    forward = logits

    def folded(self) -> FoldedDiT:
        """The same denoiser, faster, for inference: see `FoldedDiT`."""
        return FoldedDiT(self)


class FoldedBlock(Block):
    def __init__(self, block: DiTBlock, c: Tensor) -> None:
        nn.Module.__init__(self)
        parts = block.adaLN_modulation(c)[0].chunk(6)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parts
        self.n_heads, self.dropout = block.n_heads, nn.Identity()
        self.norm1 = modulated_norm(block.norm1, shift_msa, scale_msa)
        self.attn_qkv = block.attn_qkv
        self.attn_out = gated(block.attn_out, gate_msa)
        self.norm2 = modulated_norm(block.norm2, shift_mlp, scale_mlp)
        widen, activation, narrow = block.mlp
        assert isinstance(narrow, nn.Linear)
        self.mlp = nn.Sequential(widen, activation, gated(narrow, gate_mlp))


class FoldedOutput(Output):
    def __init__(self, output: DiTOutput, c: Tensor) -> None:
        super().__init__()
        self.norm_final = modulated_norm(output.norm_final, *output.adaLN_modulation(c)[0].chunk(2))
        self.linear = output.linear


def modulated_norm(norm: LayerNorm, shift: Tensor, scale: Tensor) -> LayerNorm:
    folded = LayerNorm(len(scale))
    folded.weight = nn.Parameter(norm.weight * (1 + scale))
    folded.bias = nn.Parameter(shift.clone())
    return folded


def gated(linear: nn.Linear, gate: Tensor) -> nn.Linear:
    with torch.device("meta"):
        folded = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
    folded.weight = nn.Parameter(gate[:, None] * linear.weight)
    if linear.bias is not None:
        folded.bias = nn.Parameter(gate * linear.bias)
    return folded


class FoldedDiT(Transformer):
    """A `DiT` without time conditioning whose modulation is folded into norms and matrices.

    The conditioning is then one constant, so shifts and scales become biases and weights of the
    norms, and gates scale rows of the matrices before them. Outputs are those of the `DiT` up to
    rounding: fold in float32 and only then go to a 16-bit dtype. For inference only; it shares the
    weights that stay the same, and has no layout on disk. Raises ValueError for a model with time
    conditioning.
    """

    config: DiTConfig

    @torch.no_grad()
    def __init__(self, model: DiT) -> None:
        super().__init__()
        if model.config.time_conditioning:
            raise ValueError("time_conditioning must be False to fold a DiT, got True")
        self.config = model.config
        c = model.sigma_map(torch.zeros(1, device=model.vocab_embed.embedding.device))
        self.vocab_embed, self.rotary_emb = model.vocab_embed, model.rotary_emb
        self.blocks = nn.ModuleList(FoldedBlock(block, c) for block in model.blocks)
        self.output_layer = FoldedOutput(model.output_layer, c)
        self.eval()

    @property
    def mask_id(self) -> int:
        return self.config.mask_id

    def hidden(self, xt: Tensor, sigma: Tensor) -> Tensor:
        """As `DiT.hidden`; sigma is ignored."""
        require_tokens(xt, "xt", self.length)
        return self.run_blocks(xt)

    def logits(self, xt: Tensor, sigma: Tensor) -> Tensor:
        """Raw logits [B, L, V] for tokens xt [B, L]; sigma is ignored."""
        return self.output_layer.linear(self.hidden(xt, sigma))

    forward = logits
