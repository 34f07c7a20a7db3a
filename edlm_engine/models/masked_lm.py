"""Any masked language model of transformers as a masked-diffusion denoiser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm_engine.models.forbidden import forbidding_bias
from edlm_engine.models.layers import require_tokens


class MaskedLM(nn.Module):
    """Denoiser around a model of `AutoModelForMaskedLM`; a row predicts its own position.

    `around` are the tokens that the model was trained to see before and after a text, such as
    [CLS] and [SEP]: they are put there and have no rows. `never_drawn` are tokens that get
    probability 0, beside the mask. The noise level is not used.

    Only the logits are promised by such a model. `with_head` makes of it a `MaskedLMWithHead` where
    they are a linear layer's, so that it need not run where nothing is drawn.
    """

    model: Any  # a PreTrainedModel of transformers, which need not be installed

    def __init__(
        self,
        model: nn.Module,
        *,
        mask_id: int,
        never_drawn: Iterable[int] = (),
        around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
        length: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.mask_id = mask_id
        self.never_drawn = frozenset(never_drawn) - {mask_id}
        self.around = around
        self.vocab_size: int = self.model.config.vocab_size
        self.length = _longest(self.model) - sum(map(len, around)) if length is None else length
        for token in (mask_id, *self.never_drawn, *around[0], *around[1]):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"tokens must be in [0, {self.vocab_size}), got {token}")

    def run(self, xt: Tensor) -> Tensor:
        """What the model returns as logits, at the rows of xt [n, L]."""
        require_tokens(xt, "xt", self.length)
        before, after = self.around
        seen = xt
        for side, tokens in ((0, before), (1, after)):
            if tokens:
                rows = torch.tensor(tokens, device=xt.device).expand(len(xt), -1)
                seen = torch.cat((rows, seen) if side == 0 else (seen, rows), dim=1)
        # All of it counts: some models otherwise warn of padding, or leave padding out.
        out = self.model(input_ids=seen, attention_mask=torch.ones_like(seen)).logits
        return out[:, len(before) : len(before) + xt.shape[1]]

    def logits(self, xt: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Raw logits [n, L, V], -inf at `never_drawn`. The engine excludes the mask."""
        logits = self.run(xt)
        never = torch.tensor(sorted(self.never_drawn), dtype=torch.int64, device=logits.device)
        return logits.index_fill(-1, never, -torch.inf)

    forward = logits


class MaskedLMWithHead(MaskedLM):
    """The same with the last linear layer apart: `logits = hidden @ weight.T + bias`."""

    decoder: nn.Linear

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """(weight [V, D], bias [V]), the bias -inf at `never_drawn`."""
        return self.decoder.weight, self.decoder.bias

    def hidden(self, xt: Tensor, sigma: Tensor | None = None) -> Tensor:
        """xt [n, L] -> [n, L, D] in the head's dtype."""
        return self.run(xt).to(self.decoder.weight.dtype)

    def logits(self, xt: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Raw logits [n, L, V], -inf at `never_drawn`. The engine excludes the mask."""
        return F.linear(self.hidden(xt), *self.head)

    forward = logits


@torch.no_grad()
def with_head(denoiser: MaskedLM) -> MaskedLM:
    """The denoiser with its last linear layer apart, or itself where its logits are more than that.

    The model it wraps then returns what went into that layer.
    """
    model = denoiser.model
    linear = model.get_output_embeddings()
    place = next((name for name, module in model.named_modules() if module is linear), None)
    if not isinstance(linear, nn.Linear) or place is None:
        return denoiser
    probe = torch.full((1, 3), denoiser.mask_id, device=linear.weight.device)
    probe[0, 1] = 0
    wanted = denoiser.run(probe)
    parent, _, leaf = place.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    try:
        got = F.linear(denoiser.run(probe), linear.weight, linear.bias)
        plain = torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    except RuntimeError:  # more than that layer: what follows does not take its input
        plain = False
    if not plain:
        setattr(model.get_submodule(parent), leaf, linear)
        return denoiser
    made = MaskedLMWithHead(
        model,
        mask_id=denoiser.mask_id,
        never_drawn=denoiser.never_drawn,
        around=denoiser.around,
        length=denoiser.length,
    )
    made.decoder = nn.Linear(1, 1, device="meta")
    made.decoder.weight = linear.weight
    bias = forbidding_bias(linear.weight, linear.bias, made.never_drawn)
    made.decoder.bias = nn.Parameter(bias, requires_grad=False)
    return made


def _longest(model: Any) -> int:
    """How many tokens the model's positions allow; those of RoBERTa start after the padding."""
    longest: int = model.config.max_position_embeddings
    for name, module in model.named_modules():
        offset = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and offset is not None:
            return longest - offset - 1
    return longest
