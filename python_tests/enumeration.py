"""Exact distributions of whole sequences for tiny vocabularies, by brute force in float64.

Written from the definition of the process, reverse steps of absorbing diffusion with importance
resampling among K candidates, not from the engine: states are all V^L token sequences, a step goes
over every subset of positions it may reveal, and an energy step over every K-tuple of candidates.
"""

from itertools import combinations, permutations, product
from math import comb

import numpy as np
from scipy import stats


class TinyDenoiser:
    """Random logits for each (state, position), optionally tilted with sigma; numpy."""

    def __init__(self, vocab: int, length: int, mask_id: int, *, tilt: float = 0.0, seed: int = 0):
        random = np.random.default_rng(seed)
        self.vocab, self.length, self.mask_id = vocab, length, mask_id
        self.table = random.normal(size=(vocab**length, length, vocab)).astype(np.float32)
        self.tilt = (tilt * random.normal(size=(length, vocab))).astype(np.float32)
        self.tokens = [v for v in range(vocab) if v != mask_id]

    def index(self, xt) -> int:
        return int(np.polyval(xt, self.vocab))

    def probs(self, xt, sigma: float, temperature: float = 1.0) -> np.ndarray:
        """[L, V]: SUBS at masked positions; rows of unmasked ones are of no meaning."""
        logits = (self.table[self.index(xt)] + self.tilt * np.float32(sigma)).astype(np.float64)
        weights = np.exp(logits / temperature)
        weights[:, self.mask_id] = 0
        return weights / weights.sum(axis=1, keepdims=True)


def completions(denoiser: TinyDenoiser, xt) -> list[tuple]:
    """All ways to fill the masked positions of xt."""
    masked = [v == denoiser.mask_id for v in xt]
    return list(product(*(denoiser.tokens if m else (v,) for m, v in zip(masked, xt, strict=True))))


def step_distribution(
    denoiser: TinyDenoiser, xt, sigma: float, t: float, energy, candidates: int, temperature=1.0
) -> dict[tuple, float]:
    """Distribution of the x0 that a step reveals from, given xt.

    energy(x0 tuple, xt tuple, log q [L], t) -> float with log q 0 where xt is not masked, or None
    for a plain step. With an energy, x0 is one of K independent candidates, chosen by
    softmax(-energy): every K-tuple of completions is visited.
    """
    probs = denoiser.probs(xt, sigma, temperature)
    choices = completions(denoiser, xt)
    masked = np.array(xt) == denoiser.mask_id
    drawn = [np.where(masked, probs[range(len(xt)), x0], 1.0) for x0 in choices]
    proposal = np.prod(drawn, axis=1)
    if energy is None or candidates == 1:
        return dict(zip(choices, proposal, strict=True))
    energies = [energy(x0, xt, np.log(q), t) for x0, q in zip(choices, drawn, strict=True)]
    weights = np.exp(-np.array(energies))
    tuples = np.array(list(product(range(len(choices)), repeat=candidates)))
    chosen = weights[tuples] / weights[tuples].sum(axis=1, keepdims=True)
    joint = proposal[tuples].prod(axis=1, keepdims=True) * chosen
    mass = np.bincount(tuples.ravel(), joint.ravel(), minlength=len(choices))
    return dict(zip(choices, mass, strict=True))


def reveal(xt, x0, positions) -> tuple:
    return tuple(x0[i] if i in positions else v for i, v in enumerate(xt))


def ancestral(
    denoiser, start, times, sigma, energy=None, candidates=1, window=(0.0, 1.0), temperature=1.0
) -> dict[tuple, float]:
    """Distribution of the finished sequence: N steps between `times`, then the last fill."""
    states = {tuple(start): 1.0}
    for now, then in zip(times, [*times[1:], 0.0], strict=True):
        used = energy if window[0] <= now <= window[1] else None
        stay = then / now
        after: dict[tuple, float] = {}
        for xt, mass in states.items():
            masked = [i for i, v in enumerate(xt) if v == denoiser.mask_id]
            x0s = step_distribution(denoiser, xt, sigma(now), now, used, candidates, temperature)
            for size in range(len(masked) + 1):
                for positions in combinations(masked, size):
                    chance = (1 - stay) ** size * stay ** (len(masked) - size)
                    for x0, p in x0s.items():
                        xs = reveal(xt, x0, positions)
                        after[xs] = after.get(xs, 0.0) + mass * chance * p
        states = {xt: mass for xt, mass in after.items() if mass > 0}
    return states


def first_hitting(denoiser, start, energy=None, candidates=1, low=0.0) -> dict[tuple, float]:
    """The same in continuous time, for a denoiser and an energy that do not depend on time.

    Reveal times of the n masked positions are independent uniforms, so their order is uniform, and
    the number of them in the window [low, 1] is binomial; those come first.
    """
    masked = [i for i, v in enumerate(start) if v == denoiser.mask_id]
    n = len(masked)
    result: dict[tuple, float] = {}
    for inside in range(n + 1):
        share = comb(n, inside) * (1 - low) ** inside * low ** (n - inside)
        orders = list(permutations(masked))
        for order in orders:
            states = {tuple(start): share / len(orders)}
            for rank, position in enumerate(order):
                after: dict[tuple, float] = {}
                used = energy if rank < inside else None
                for xt, mass in states.items():
                    x0s = step_distribution(denoiser, xt, 0.0, 0.0, used, candidates)
                    for x0, p in x0s.items():
                        xs = reveal(xt, x0, (position,))
                        after[xs] = after.get(xs, 0.0) + mass * p
                states = after
            for xt, mass in states.items():
                result[xt] = result.get(xt, 0.0) + mass
    return result


def p_value(sequences: np.ndarray, exact: dict[tuple, float]) -> float:
    """Chi-square test of sequences [n, L] against exact probabilities; bins of < 5 are pooled.

    A sequence that cannot happen gives 0.
    """
    assert abs(sum(exact.values()) - 1) < 1e-9
    found, counts = np.unique(sequences, axis=0, return_counts=True)
    counts = {tuple(x.tolist()): int(c) for x, c in zip(found, counts, strict=True)}
    if any(exact.get(x, 0.0) <= 0 for x in counts):
        return 0.0
    expected = np.array([p * len(sequences) for p in exact.values() if p > 0])
    observed = np.array([counts.get(x, 0) for x, p in exact.items() if p > 0])
    small = expected < 5
    if small.any():
        expected = np.append(expected[~small], expected[small].sum())
        observed = np.append(observed[~small], observed[small].sum())
    return float(stats.chisquare(observed, expected).pvalue)
