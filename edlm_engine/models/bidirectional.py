"""A causal language model of transformers, its causal mask off, as a masked-diffusion denoiser."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm_engine.models.forbidden import forbidding_bias
from edlm_engine.models.layers import require_tokens

ATTENTION = "edlm_bidirectional"


def bidirectional_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention [n, heads, L, d] in which every position sees all others, as transformers calls it.

    `attention_mask` is None, or [.., L, L] bool, True where a position (row) may see another: the
    library passes on what a caller gives it in four dimensions, and makes none of its own here.
    Where a gradient is wanted on a CPU it is written out: the backward pass of torch's fused
    attention takes three to four times as long there.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    if query.requires_grad and query.device.type == "cpu":
        scores = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, -torch.inf)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
        mixed = F.dropout(weights, dropout) @ value
    else:
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, dropout_p=dropout
        )
    return mixed.transpose(1, 2).contiguous(), None


def without_causal_mask(model: nn.Module) -> Any:
    """A copy of a transformers model in which attention is bidirectional; parameters are shared.

    The copy holds the very `Parameter` objects of `model`: the weights lie in memory once.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, bidirectional_attention)
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    twin: Any = copy.deepcopy(model, shared)
    twin.set_attn_implementation(ATTENTION)
    return twin


class BidirectionalCausalLM(nn.Module):
    """Denoiser around a transformers causal language model (its own copy, causal mask off).

    With `bos_id` the prediction stays shifted by one, as the model learned it: the token is put in
    front and the row that left to right would predict token l predicts it here from all visible
    tokens. With None a row predicts its own position; or with `shifted` the next one, as left to
    right but without a token in front, and row 0 both its own position and the next. `never_drawn`
    are tokens that get probability 0, beside the mask. `mask_embedding` [D] is what stands for the
    mask token at the input; None leaves the model's own row. The noise level is not used: the share
    of masked tokens tells it.

    Args:
        model: a transformers model whose logits are a linear head on its last hidden state.
        mask_id: a token of the vocabulary that text never holds.
        length: the longest sequence; by default what the model's positions allow, and then
            `any_length` is True: whoever generates must say how much.
    """

    model: Any  # a PreTrainedModel of transformers, which need not be installed
    length: int
    any_length: bool

    def __init__(
        self,
        model: nn.Module,
        *,
        mask_id: int,
        bos_id: int | None = None,
        length: int | None = None,
        mask_embedding: Tensor | None = None,
        shifted: bool = False,
        never_drawn: Iterable[int] = (),
    ) -> None:
        super().__init__()
        self.model = without_causal_mask(model)
        self.mask_id = mask_id
        self.bos_id = bos_id
        self.shifted = shifted
        self.never_drawn = frozenset(never_drawn)
        longest = self.model.config.max_position_embeddings - (bos_id is not None)
        self.any_length = length is None
        self.length = longest if length is None else length
        if not 1 <= self.length <= longest:
            raise ValueError(f"length must be in [1, {longest}], got {length}")
        for name, token in (("mask_id", mask_id), ("bos_id", bos_id)):
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name} must be in [0, {self.vocab_size}), got {token}")
        self._forbid()
        self.mask_embedding = None if mask_embedding is None else nn.Parameter(mask_embedding)
        # In training mode, what a position may see while later ones are shown bit by bit.
        self.visible: Tensor | None = None
        self.eval()

    def _forbid(self) -> None:
        if self.never_drawn:
            linear = self.model.get_output_embeddings()
            bias = forbidding_bias(*self.head, self.never_drawn)
            linear.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def vocab_size(self) -> int:
        return len(self.head[0])

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """(weight [V, D], bias [V] or None): `logits = hidden @ weight.T + bias`."""
        linear = self.model.get_output_embeddings()
        return linear.weight, getattr(linear, "bias", None)

    def hidden(self, xt: Tensor, sigma: Tensor | None = None) -> Tensor:
        """xt [n, L] -> [n, L, D] in the head's dtype; row l predicts token l from all of xt."""
        require_tokens(xt, "xt", self.length)
        seen = xt if self.bos_id is None else F.pad(xt, (1, 0), value=self.bos_id)
        embedded = self.model.get_input_embeddings()(seen)
        if self.mask_embedding is not None:
            masked = (seen == self.mask_id)[..., None]
            embedded = torch.where(masked, self.mask_embedding.to(embedded.dtype), embedded)
        visible = self.visible if self.training else None
        states = self.model.base_model(
            inputs_embeds=embedded, attention_mask=visible, use_cache=False
        ).last_hidden_state
        if self.bos_id is not None:
            states = states[:, :-1]
        elif self.shifted:
            states = torch.cat((states[:, :1], states[:, :-1]), dim=1)
        return states.to(self.head[0].dtype)

    def logits(self, xt: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Raw logits [n, L, V]; row l predicts token l. The engine excludes the mask."""
        return F.linear(self.hidden(xt), *self.head)

    forward = logits
