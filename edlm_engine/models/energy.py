"""The network behind an NCE energy: a bidirectional transformer that reads xt and x0 at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm_engine.models.dit import (
    DiT,
    DiTBlock,
    DiTConfig,
    DiTOutput,
    FoldedBlock,
    FoldedOutput,
    SigmaEmbedding,
)
from edlm_engine.models.layers import Embedding, Rotary, Transformer, require_type


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(DiTConfig):
    """Sizes of an `EnergyTransformer`, which reads the tokens of a denoiser, the mask among them.

    `pad_id` is a token whose positions are left out of the mean, -1 for none.
    """

    pad_id: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_type("pad_id", self.pad_id, int)
        if not -1 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be -1 or in [0, {self.vocab_size}), got {self.pad_id}")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings must be False: an energy has no head to tie")


class EnergyTransformer(Transformer):
    """E(x0, xt, t) of EDLM-NCE, the architecture and parameter names of its released network.

    The embeddings of xt and x0 are concatenated and projected to the width of the blocks; behind
    the blocks and a last layer that starts at zero, the mean over positions goes through two layers
    to one number. Deterministic in eval mode.
    """

    config: EnergyConfig
    output_layer: DiTOutput

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.vocab_embed = Embedding(config.vocab_size, width)
        self.sigma_map = SigmaEmbedding(config.cond_dim)
        self.rotary_emb = Rotary(width // config.n_heads)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.n_blocks))
        self.output_layer = DiTOutput(config, width)
        nn.init.zeros_(self.output_layer.linear.weight)
        nn.init.zeros_(self.output_layer.linear.bias)
        self.vocab_proj = nn.Linear(2 * width, width)
        self.energy_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1, bias=False)
        )

    @classmethod
    @torch.no_grad()
    def from_denoiser(
        cls, denoiser: DiT, n_blocks: int | None = None, **sizes: Any
    ) -> EnergyTransformer:
        """A network that starts with the weights of a denoiser, or of its first `n_blocks` blocks.

        The projection starts as the mean of both embeddings: a known token enters the blocks as it
        enters those of the denoiser. `sizes` are fields of the configuration without weights.
        """
        config = asdict(denoiser.config) | {"tie_word_embeddings": False, **sizes}
        kept = config["n_blocks"] if n_blocks is None else n_blocks
        if not 1 <= kept <= config["n_blocks"]:
            raise ValueError(f"n_blocks must be in [1, {config['n_blocks']}], got {n_blocks}")
        made = cls(EnergyConfig(**config | {"n_blocks": kept}))
        own = made.state_dict()
        shared = {
            name: tensor
            for name, tensor in denoiser.state_dict().items()
            if name in own and not name.startswith("output_layer.linear.")
        }
        made.load_state_dict(shared, strict=False)
        half = torch.eye(config["hidden_dim"]) / 2
        made.vocab_proj.weight.copy_(torch.cat((half, half), dim=1))
        made.vocab_proj.bias.zero_()
        return made

    @property
    def mask_id(self) -> int:
        return self.config.mask_id

    def energies(self, x0: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
        """Energies [b, K] float32, low for likely candidates; the network's output is E itself.

        Args:
            x0: complete candidates [b, K, L], any L up to `length`.
            xt: noisy tokens [b, L], embedded and projected once for all K.
            sigma: total noise [b], float. Ignored (taken as 0) without time conditioning.
        """
        self._require(x0, xt)
        x = self._inputs(x0, xt)
        if self.config.time_conditioning:
            sigma = sigma.repeat_interleave(x0.shape[1])
        else:
            # The conditioning is then one constant, and batch 1 broadcasts.
            sigma = torch.zeros(1, device=xt.device)
        return self._pool(self._states(x, sigma), x0)

    forward = energies

    def folded(self) -> FoldedEnergy:
        """The same energy, faster, for inference: see `FoldedDiT`."""
        return FoldedEnergy(self)

    def _require(self, x0: Tensor, xt: Tensor) -> None:
        fits = x0.dim() == 3 and xt.shape == (x0.shape[0], x0.shape[2])
        if (
            not fits
            or xt.shape[1] > self.length
            or x0.dtype != xt.dtype
            or xt.dtype.is_floating_point
        ):
            raise ValueError(
                f"x0 and xt must be integers with shapes [b, K, L] and [b, L], L at most "
                f"{self.length}, got {x0.dtype} {list(x0.shape)} and {xt.dtype} {list(xt.shape)}"
            )

    def _inputs(self, x0: Tensor, xt: Tensor) -> Tensor:
        """What enters the blocks, [b * K, L, D] in their dtype.

        A product with concatenated embeddings is the sum of two, one of which all candidates share.
        """
        of_xt, of_x0 = self.vocab_proj.weight.chunk(2, dim=1)
        shared = F.linear(self.vocab_embed(xt), of_xt, self.vocab_proj.bias)
        x = (shared[:, None] + F.linear(self.vocab_embed(x0), of_x0)).flatten(0, 1)
        return x.to(self.blocks[0].attn_qkv.weight.dtype)

    def _states(self, x: Tensor, sigma: Tensor) -> Tensor:
        """[n, L, D] before the last linear layer, in its dtype."""
        c = self.sigma_map(sigma)
        rotary = self.rotary_emb(x.shape[1])
        for block in self.blocks:
            x = block(x, rotary, c)
        return self.output_layer(x, c)

    def _pool(self, x: Tensor, x0: Tensor) -> Tensor:
        """The energy of states [n, L, D], without autocast: 8 bits would round it by tenths.

        The last linear layer is applied to the mean, which is the mean of what it makes of each.
        """
        with torch.autocast(x.device.type, enabled=False):
            if self.config.pad_id < 0:
                mean = x.mean(1, dtype=torch.float32)
            else:
                counted = (x0.flatten(0, 1) != self.config.pad_id)[..., None].float()
                mean = (x * counted).sum(1) / counted.sum(1).clamp(min=1)
            layer = self.output_layer.linear
            pooled = layer(mean.to(layer.weight.dtype))
            return self.energy_head(pooled).float().view(x0.shape[:2])


class FoldedEnergy(EnergyTransformer):
    """An `EnergyTransformer` without time conditioning, its modulation folded as in `FoldedDiT`."""

    @torch.no_grad()
    def __init__(self, model: EnergyTransformer) -> None:
        Transformer.__init__(self)
        if model.config.time_conditioning:
            raise ValueError("time_conditioning must be False to fold an energy, got True")
        self.config = model.config
        c = model.sigma_map(torch.zeros(1, device=model.vocab_embed.embedding.device))
        self.vocab_embed, self.rotary_emb = model.vocab_embed, model.rotary_emb
        self.blocks = nn.ModuleList(FoldedBlock(block, c) for block in model.blocks)
        self.output_layer = FoldedOutput(model.output_layer, c)  # type: ignore[assignment]
        self.vocab_proj, self.energy_head = model.vocab_proj, model.energy_head
        self.eval()

    def _states(self, x: Tensor, sigma: Tensor) -> Tensor:
        rotary = self.rotary_emb(x.shape[1])
        for block in self.blocks:
            x = block(x, rotary)
        return self.final_norm(x)
