"""What the engine asks of a denoiser, and an adapter for plain functions."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor


class Denoiser(Protocol):
    """A masked diffusion model p(x0 | xt), with `mask_id`, `vocab_size` and `length` (all int).

    The engine leaves the mask token out of the distribution and never draws at unmasked positions
    (SUBS), so raw logits are enough. A denoiser may also have

    - `hidden(xt, sigma) -> [B, L, D]` and `head -> (weight [V, D], bias [V] | None)` with
      logits = hidden @ weight.T + bias: the engine then applies the head only where it draws;
    - `device`, if it is neither the CPU nor that of its `parameters()`;
    - `needs_grad`, True if it takes gradients, within `torch.enable_grad()`: generation then runs
      under `torch.no_grad()` instead of `torch.inference_mode()`;
    - `any_length`, True if `length` is only a limit and each generation must say its own;
    - `never_drawn`, ids that get probability 0 beside the mask, which an energy need not know;
    - `capturable`, True if CUDA graphs may replay it: `edlm_engine.execution.graphs` says what that
      asks.
    """

    if TYPE_CHECKING:  # readable is enough; a class that inherits from this one may set them

        @property
        def mask_id(self) -> int: ...

        @property
        def vocab_size(self) -> int: ...

        @property
        def length(self) -> int: ...

    def logits(self, xt: Tensor, sigma: Tensor) -> Tensor:
        """Logits [B, L, V] of the clean tokens, from xt [B, L] int64 and sigma [B] float32."""
        ...


class CallableDenoiser:
    """Any function (xt [B, L] int64, sigma [B] float32) -> logits [B, L, V] as a denoiser."""

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        *,
        mask_id: int,
        vocab_size: int,
        length: int,
        device: torch.device | str = "cpu",
    ):
        self.logits = fn
        self.mask_id, self.vocab_size, self.length = mask_id, vocab_size, length
        self.device = torch.device(device)


def device_of(model: object) -> torch.device:
    """The model's `device`, else that of its first parameter, else the CPU."""
    device = getattr(model, "device", None)
    if device is None:
        parameters: Iterable[Tensor] = getattr(model, "parameters", tuple)()
        device = next((parameter.device for parameter in parameters), "cpu")
    return torch.device(device)
