"""Tiny models with tables for weights, whose arithmetic no batch and no thread count changes."""

import numpy as np
import torch
from enumeration import TinyDenoiser

from edlm_engine import CallableDenoiser


def table_denoiser(tiny: TinyDenoiser) -> CallableDenoiser:
    """The engine's view of a `TinyDenoiser`."""
    table, tilt = torch.from_numpy(tiny.table), torch.from_numpy(tiny.tilt)

    def logits(xt, sigma):
        state = torch.zeros(len(xt), dtype=torch.int64)
        for token in xt.unbind(1):
            state = state * tiny.vocab + token
        return table[state] + tilt * sigma[:, None, None]

    return CallableDenoiser(logits, mask_id=tiny.mask_id, vocab_size=tiny.vocab, length=tiny.length)


class HeadDenoiser:
    """The same through `hidden` and `head`: the hidden state is the one-hot code of (state, l)."""

    def __init__(self, tiny: TinyDenoiser):
        self.tiny = tiny
        self.mask_id, self.vocab_size, self.length = tiny.mask_id, tiny.vocab, tiny.length
        table = torch.from_numpy(tiny.table).flatten(0, 1)
        bias = torch.linspace(-1, 1, tiny.vocab)
        self.head = (table - bias).T.contiguous(), bias

    def hidden(self, xt, sigma):
        states = torch.tensor([self.tiny.index(x) for x in xt.tolist()])
        rows = states[:, None] * self.length + torch.arange(self.length)
        return torch.nn.functional.one_hot(rows, self.head[0].shape[1]).float()


class TableAR:
    """A left-to-right model with a free table of logits for each prefix.

    The hidden state of a position is the one-hot code of the prefix before it, so the head is the
    table. Without a BOS (`first_position=1`) position 0 is not scored.
    """

    def __init__(self, vocab: int, length: int, *, first_position=0, forbidden_id=-1, seed=1):
        self.vocab_size, self.length = vocab, length
        self.first_position, self.forbidden_id = first_position, forbidden_id
        self.prefixes = sum(vocab**i for i in range(length))
        random = np.random.default_rng(seed)
        weight = random.normal(size=(vocab, self.prefixes)).astype(np.float32)
        bias = random.normal(size=vocab).astype(np.float32)
        self.head = torch.from_numpy(weight), torch.from_numpy(bias)
        self.logits = (weight + bias[:, None]).astype(np.float64)

    def hidden(self, tokens):
        prefix = torch.zeros_like(tokens)
        for position in range(1, tokens.shape[1]):
            before = prefix[:, position - 1] * self.vocab_size
            prefix[:, position] = before + tokens[:, position - 1] + 1
        return torch.nn.functional.one_hot(prefix, self.prefixes).float()

    def log_probs(self, x0) -> np.ndarray:
        """log p(x0_l | x0_<l) of every position [L], in numpy."""
        result, prefix = np.zeros(len(x0)), 0
        for position, token in enumerate(x0):
            logits = self.logits[:, prefix].copy()
            if self.forbidden_id >= 0:
                logits[self.forbidden_id] = -np.inf
            result[position] = logits[token] - np.log(np.exp(logits).sum())
            prefix = prefix * self.vocab_size + token + 1
        return result

    def residual(self, mask_id: int, carry_over: bool = False):
        """Equation 9 by hand: energy(x0, xt, log q [L], t) = -log p_AR(x0) + log q(x0)."""

        def energy(x0, xt, log_q, t):
            scored = np.arange(len(x0)) >= self.first_position
            masked = np.array(xt) == mask_id
            log_p = self.log_probs(x0)[scored & masked if carry_over else scored].sum()
            return log_q[scored].sum() - log_p

        return energy
