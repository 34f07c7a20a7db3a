"""Energies E(x0, xt, t) of complete candidates: lower is likelier.

The engine draws K candidates from the denoiser, p_theta(x0 | xt), and keeps one with probability
softmax(-E), which aims at p_theta(x0 | xt) exp(-E) / Z (EDLM, arXiv 2410.21357, equation 7).
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from torch import Tensor


class Energy(Protocol):
    """An object with this method, or any callable with its signature, is an energy.

    Optional attributes: `first_position` (default 0), the first position that the energy scores:
    the engine leaves the positions before it out of `log_q`; `vocab_size` and `length`, checked
    against those of the denoiser; `residual`, True for an energy that holds + log_q, so that
    exp(-E) is a likelihood ratio to what was drawn, or a number for one that holds so many times
    it; `needs_grad`, True for an energy that takes
    gradients, within `torch.enable_grad()`: generation then runs under `torch.no_grad()` instead
    of `torch.inference_mode()`, whose tensors autograd refuses.

    A method or function with a parameter `masked` is also given, by that name, where xt is masked:
    a NumPy array [B, L] bool. It lies on the host, so an energy that needs to know does not have to
    wait for a CUDA device to tell.
    """

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """Energies [B, K] float32.

        x0: complete candidates [B, K, L] int64, equal to xt where xt is not masked. The engine
            fills the same buffer anew at the next step. Not to be modified.
        xt: noisy tokens [B, L] int64.
        log_q: log-probability [B, K] float32 of the candidate under the distribution it was drawn
            from, summed over the masked positions.
        t: time [B] float32 in (0, 1].
        """
        ...


def energy_function(energy: Energy | Callable) -> Callable:
    """What to call, as (x0, xt, log_q, t, masked=): the method `energy` of objects whose class has
    it, else the object itself."""
    has_method = hasattr(type(energy), "energy") or not callable(energy)
    function: Any = energy.energy if has_method else energy  # type: ignore[union-attr]
    parameters: Mapping[str, inspect.Parameter] = {}
    with suppress(ValueError):  # some built-in functions have none
        parameters = inspect.signature(function, follow_wrapped=False).parameters
    if "masked" in parameters:
        return function
    return lambda x0, xt, log_q, t, masked: function(x0, xt, log_q, t)


class AutoregressiveModel(Protocol):
    """What `ARResidualEnergy` and `generative_perplexity` ask of a left-to-right model.

    It may be `capturable`, as a `Denoiser` may. One that goes on from what it has seen has
    `hidden_after_prefix`, `start_cache` and `hidden_step` besides, as `AutoregressiveTransformer`.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def first_position(self) -> int:
        """The first position whose token is scored: 0 with a BOS, else 1."""
        ...

    @property
    def forbidden_id(self) -> int:
        """A token that is never emitted, -1 for none."""
        ...

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """weight [V, D], bias [V]."""
        ...

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [n, L] -> [n, L, D]; row l of a sequence predicts its token l."""
        ...
