"""What the engine is compared with: other ways to do the same work, in plain PyTorch.

The released sampler is restated from its published description, faults included: they are what the
comparison, and the many-tail test, are about.
"""

import functools
import itertools

import torch
from torch import Tensor


def released_race(probs: Tensor, num_samples: int = 1) -> Tensor:
    """The exponential race of the MDLM and EDLM code: argmax of probs over -log(uniform).

    ``probs [..., V]`` in any float dtype; returns ``[num_samples * first, ...]``, all of sample 0
    first. The uniforms have the dtype of ``probs``: in float32 they end at 1 - 2^-24, so a token
    some 17 nats below the best can hardly win; in bfloat16 they have 8 significant bits.
    """
    if num_samples > 1:
        probs = probs.repeat(num_samples, *(1 for _ in probs.shape[1:]))
    race = 1e-10 - (torch.rand_like(probs) + 1e-10).log()
    return (probs / race).argmax(dim=-1)


def released_candidates(logits: Tensor, num_candidates: int, forbidden_id: int) -> Tensor:
    """Released route from ``logits [R, V]`` to ``tokens [R, K]``: mask, normalise, exp, race."""
    logits = logits.clone()
    logits[:, forbidden_id] -= 1e6
    probs = (logits - torch.logsumexp(logits, dim=-1, keepdim=True)).exp()
    return released_race(probs, num_candidates).view(num_candidates, -1).T


def softmax_multinomial(
    logits: Tensor, num_candidates: int, forbidden_id: int
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch: softmax, ``torch.multinomial`` with replacement, and the drawn log-probs."""
    logits = logits.clone()
    logits[:, forbidden_id] = -torch.inf
    probs = torch.softmax(logits.float(), dim=-1)
    tokens = torch.multinomial(probs, num_candidates, replacement=True)
    return tokens, probs.gather(1, tokens).log()


def log_softmax_gather(logits: Tensor, targets: Tensor) -> Tensor:
    """Plain PyTorch: the whole log-softmax, then one number of each row."""
    return torch.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None])[:, 0]


def plain_residual(logits_p: Tensor, logits_q: Tensor, draft: Tensor) -> tuple[Tensor, Tensor]:
    """Speculative sampling's step in plain PyTorch: both softmaxes, and a draw for every row."""
    p, q = torch.softmax(logits_p.float(), dim=-1), torch.softmax(logits_q.float(), dim=-1)
    ratio = (p.gather(1, draft[:, None]) / q.gather(1, draft[:, None]))[:, 0]
    accepted = torch.rand_like(ratio) < ratio
    redrawn = (p - q).clamp(min=0).multinomial(1)[:, 0]
    return torch.where(accepted, draft, redrawn), accepted


class ReleasedRun:
    """One generation as the published EDLM code does it (MDLM where ``num_candidates`` is 1).

    One cache of probabilities for the whole batch, thrown away when any token of any sequence
    changes; full-vocabulary logits of all positions for every model call; candidates by K races
    over copies of the probabilities; the AR model's whole log-softmax for L numbers; a one-hot of
    the chosen candidate over the vocabulary; and a second full race for the reverse step. Its
    errors of sign and layout do not change the work and are left out.
    """

    def __init__(self, denoiser, ar, xt: Tensor, *, num_candidates: int = 1, window: float = 0.0):
        """``xt [B, L]``: the tokens to start from, on the models' device."""
        self.denoiser, self.ar, self.xt = denoiser, ar, xt
        self.num_candidates, self.window = num_candidates, window
        self.cached: Tensor | None = None

    @torch.inference_mode()
    def step(self, t: float, s: float) -> None:
        """The step from time t to s; the models run if a token changed in the step before."""
        mask_id = self.denoiser.mask_id
        if self.cached is None:
            self.cached = self.probabilities(t)
        # In the released code the times are a float32 tensor, which promotes this race to float32.
        reverse = self.cached.float() * (t - s)
        reverse[..., mask_id] = s
        proposed = released_race(reverse)
        xs = torch.where(self.xt == mask_id, proposed, self.xt)
        if not torch.equal(xs, self.xt):
            self.cached = None
        self.xt = xs

    @torch.inference_mode()
    def probabilities(self, t: float) -> Tensor:
        """[B, L, V] of clean tokens: the denoiser's, or one-hot where the energy chose them."""
        xt, mask_id = self.xt, self.denoiser.mask_id
        logits = self.denoiser.logits(xt, torch.zeros(len(xt), device=xt.device))
        logits[..., mask_id] -= 1e6
        log_probs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        log_probs[xt != mask_id] = -1e6
        log_probs[xt != mask_id, xt[xt != mask_id]] = 0
        probs = log_probs.exp()
        if self.num_candidates > 1 and t >= 1 - self.window:
            return _released_choice(self.ar, probs, self.num_candidates)
        return probs


def released_edlm(denoiser, ar, *, batch_size: int, length: int, steps: int, **options) -> Tensor:
    """A whole generation ``[batch_size, length]``; ``options`` as for :class:`ReleasedRun`."""
    device = next(denoiser.parameters()).device
    xt = torch.full((batch_size, length), denoiser.mask_id, device=device)
    run = ReleasedRun(denoiser, ar, xt, **options)
    for t, s in itertools.pairwise(torch.linspace(1, 1e-5, steps + 1).tolist()):
        run.step(t, s)
    return run.xt


def _released_choice(ar, probs: Tensor, num_candidates: int) -> Tensor:
    """One-hot [B, L, V] of one candidate per sequence, chosen by the AR model."""
    batch, length, vocab = probs.shape
    x0 = released_race(probs, num_candidates)
    log_q = probs.repeat(num_candidates, 1, 1).gather(-1, x0[..., None])[..., 0].log().sum(-1)
    logits = ar.logits(x0)
    log_p = (logits - torch.logsumexp(logits, dim=-1, keepdim=True)).gather(-1, x0[..., None])
    log_weights = (log_p[..., 0].float().sum(-1) - log_q.float()).view(num_candidates, batch)
    choice = torch.softmax(log_weights, dim=0).T.multinomial(1)[:, 0]
    chosen = x0.view(num_candidates, batch, length)[choice, torch.arange(batch, device=x0.device)]
    return torch.nn.functional.one_hot(chosen, vocab).to(probs.dtype)


@functools.cache
def _gpt2(size, dtype: torch.dtype, device: torch.device):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size.vocab,
        n_positions=size.length + 1,
        n_embd=size.hidden_dim,
        n_layer=size.blocks,
        n_head=size.heads,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval().to(device, dtype)


@torch.inference_mode()
def ar_sampling(size, dtype: torch.dtype, device: torch.device, batch_size: int) -> Tensor:
    """A GPT-2 of a `bench.models.Size`, random weights, sampled from the left by transformers."""
    start = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
    return _gpt2(size, dtype, device).generate(
        start, do_sample=True, top_k=0, max_new_tokens=size.length, min_new_tokens=size.length
    )
