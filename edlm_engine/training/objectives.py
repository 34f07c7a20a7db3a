"""Training losses, shared by the training step and the held-out evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edlm_engine.models import AutoregressiveTransformer, DiT
from edlm_engine.sampling.schedule import LogLinearSchedule
from edlm_engine.training.nce import Contrast

# How often the final evaluation shows each held-out window to the denoiser.
FINAL_DRAWS = 4

Hidden = Callable[..., Tensor]


def mask_tokens(x0: Tensor, mask_id: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy tokens and mask counts of a batch, at stratified times.

    Row b has time t_b = (b + u) / B with one u for the batch (rows shuffled against it), and
    n_b = ceil(L t_b) of its L positions masked, drawn without replacement.

    Returns:
        xt [B, L], and n [B] in 1..L.
    """
    rows, length = x0.shape
    t = (torch.randperm(rows, generator=random) + torch.rand(1, generator=random)) / rows
    count = (length * t).ceil().long().clamp(1, length)
    rank = torch.rand(rows, length, generator=random).argsort(1).argsort(1)
    masked = (rank < count[:, None]).to(x0.device)
    return torch.where(masked, mask_id, x0), count.to(x0.device)


def denoiser_loss(model: DiT, x0: Tensor, random: torch.Generator, hidden: Hidden) -> Tensor:
    """Continuous-time SUBS bound on -log p(x0), in nats per token (scalar, differentiable).

    The bound of the log-linear schedule is the integral over t in (0, 1) of
    (1 / t) E[sum of -log p(x0_l | xt) over masked l], each position masked with probability t.
    Given the number n of masked positions, t integrates out: every n in 1..L has weight 1 / n,
    so the bound is the sum over n of (1 / n) E[sum over n random positions]. Drawing n by
    stratified times is therefore the same objective with less variance, and needs no cut at t = 0.

    `hidden` is `model.hidden` or a compiled form of it. The head runs at masked positions only,
    and the mask is excluded from the softmax.
    """
    xt, count = mask_tokens(x0, model.mask_id, random)
    masked = xt == model.mask_id
    sigma = torch.zeros(len(x0), device=x0.device)
    logits = F.linear(hidden(xt, sigma)[masked], *model.head).float()
    logits[:, model.mask_id] = -torch.inf
    nll = F.cross_entropy(logits, x0[masked], reduction="none")
    weight = (1.0 / count)[:, None].expand_as(masked)[masked]
    return (weight * nll).sum() / len(x0)


def ar_loss(
    model: AutoregressiveTransformer, x0: Tensor, random: torch.Generator, hidden: Hidden
) -> Tensor:
    """-log p(x0) in nats per scored token (scalar, differentiable). `random` is not used."""
    first = model.first_position
    logits = F.linear(hidden(x0)[:, first:].flatten(0, 1), *model.head).float()
    if model.forbidden_id >= 0:
        logits[:, model.forbidden_id] = -torch.inf
    return F.cross_entropy(logits, x0[:, first:].flatten())


def nce_energies(
    model: Contrast,
    x0: Tensor,
    random: torch.Generator,
    energies: Callable[..., Tensor],
    redraws: int = 0,
) -> Tensor:
    """Energies [B, 1 + n + redraws] of windows x0 [B, L] and of n draws at their masked positions,
    then of the windows with a few of these drawn anew (`few_redrawn`).

    Rows are masked at stratified times t ~ U(0, 1) (`mask_tokens`), and t given the number n of
    masked positions is Beta(n + 1, L - n + 1): the (n + 1)-th of L + 1 sorted uniforms.
    """
    xt, count = mask_tokens(x0, model.mask_id, random)
    rows, length = x0.shape
    times = torch.rand(rows, length + 1, generator=random).sort(1).values.to(x0.device)
    sigma = LogLinearSchedule().sigma(times.gather(1, count[:, None])[:, 0])
    seeds = torch.randint(2**62, (rows,), generator=random)
    drawn = model.draw(xt, sigma, seeds, model.negatives + redraws)
    if redraws:
        few = few_redrawn(xt == model.mask_id, redraws, random)
        drawn[:, model.negatives :] = torch.where(few, drawn[:, model.negatives :], x0[:, None])
    return energies(torch.cat((x0[:, None], drawn), dim=1), xt, sigma)


def few_redrawn(masked: Tensor, redraws: int, random: torch.Generator) -> Tensor:
    """Masks [B, redraws, L] of m of the n masked positions of each row, log m uniform to log n."""
    rows, length = masked.shape
    count = masked.sum(1).cpu()[:, None]
    u = torch.rand(rows, redraws, generator=random)
    few = ((count + 1).log() * u).exp().floor().minimum(count)[..., None].to(masked.device)
    order = torch.rand(rows, redraws, length, generator=random).to(masked.device)
    rank = order.masked_fill(~masked[:, None], 2.0).argsort(2).argsort(2)
    return rank < few


def nce_loss(
    model: Contrast, x0: Tensor, random: torch.Generator, energies: Callable[..., Tensor]
) -> Tensor:
    """-log sigma(-E(data)) - log sigma(E(drawn)) in nats per window (equation 10), 1.386 by chance.

    The second term is the mean over the draws, however many: where the loss is least, E is
    -log p_data(x0 | xt) / p_theta(x0 | xt), without an offset.

    With `model.redraws`, plus the mean over them of -log sigma(E(redrawn) - E(data)): conditional
    NCE (Ceylan and Gutmann, 2018), which is least at the same E, for of a text and one that differs
    from it in positions A the former is the data with odds of p_data(x0) p_theta(x_A') to
    p_data(x') p_theta(x_A). Whole draws are soon told from text at any E that is low enough, and
    then teach nothing of how candidates compare; few redrawn tokens stay hard to find.
    """
    found = nce_energies(model, x0, random, energies, model.redraws)
    whole, few = found[:, : 1 + model.negatives], found[:, 1 + model.negatives :]
    loss = _contrast_loss(whole)
    return loss + F.softplus(whole[:, :1] - few).mean() if model.redraws else loss


def _contrast_loss(energies: Tensor) -> Tensor:
    return (F.softplus(energies[:, 0]) + F.softplus(-energies[:, 1:]).mean(1)).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "denoiser": denoiser_loss,
    "adapt": denoiser_loss,
    "ar": ar_loss,
    "energy": nce_loss,
}


def network_of(kind: str, model: Any) -> Callable[..., Tensor]:
    """The method of a model that a loss calls, and that a run may compile."""
    return model.energies if kind == "energy" else model.hidden


@torch.inference_mode()
def held_out_loss(
    kind: str,
    model: Any,
    windows: Tensor,
    *,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> float:
    """Mean loss over windows [n, L] in the unit of its kind, deterministic for a seed.

    A denoiser sees each window `draws` times at stratified times; one draw is exact for "ar".
    """
    was_training = model.training
    model.eval()
    random = torch.Generator().manual_seed(seed)
    total = 0.0
    draws = 1 if kind == "ar" else draws
    for _ in range(draws):
        for x0 in windows.split(batch_size):
            total += LOSSES[kind](model, x0, random, network_of(kind, model)).item() * len(x0)
    model.train(was_training)
    return total / (len(windows) * draws)


@torch.inference_mode()
def held_out_contrast(
    model: Contrast, windows: Tensor, *, draws: int = 1, seed: int = 0, batch_size: int = 64
) -> dict[str, float]:
    """`held_out_loss` of an energy, and what else tells how it does.

    `held_out_accuracy` is the share of data with E < 0 and of draws with E > 0, in equal parts (0.5
    by chance); `held_out_gap` is the mean energy of draws less that of data, in nats.
    """
    was_training = model.training
    model.eval()
    random = torch.Generator().manual_seed(seed)
    found = [
        nce_energies(model, x0, random, model.energies)
        for _ in range(draws)
        for x0 in windows.split(batch_size)
    ]
    model.train(was_training)
    energies = torch.cat(found).double()
    data, drawn = energies[:, 0], energies[:, 1:]
    right = ((data < 0).double().mean() + (drawn > 0).double().mean()) / 2
    return {
        "held_out_loss": _contrast_loss(energies).item(),
        "held_out_accuracy": right.item(),
        "held_out_gap": (drawn.mean() - data.mean()).item(),
    }
