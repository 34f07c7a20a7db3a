"""Inputs and checks shared by the tests of the ops."""

import numpy as np
import torch
from scipy import stats

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VOCABS = [1, 2, 7, 28, 127, 128, 129, 2047, 2049, 4096, 50258]

# Chance that a correct sampler fails one test. Seeds are fixed, so a failure is not bad luck twice.
P_VALUE = 1e-4


def random_logits(
    rows: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    scale: float = 3.0,
    seed: int = 0,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * vocab + rows)
    return (torch.randn(rows, vocab, generator=generator) * scale).to(device, dtype)


def poisoned_rows(logits: torch.Tensor, offset: int = 3, margin: int = 5) -> torch.Tensor:
    """The same rows inside a wider matrix of NaN: a stray read cannot pass unnoticed."""
    rows, vocab = logits.shape
    wide = torch.full((rows, offset + vocab + margin), torch.nan, dtype=logits.dtype)
    wide = wide.to(logits.device)
    wide[:, offset : offset + vocab] = logits
    view = wide[:, offset : offset + vocab]
    assert view.stride(0) == offset + vocab + margin
    return view


def g_test(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    """p-value of drawn ``tokens`` against ``probs [V]``; rare tokens are pooled until each bin
    expects at least 5."""
    observed = np.bincount(tokens.flatten().numpy(), minlength=len(probs)).astype(float)
    expected = probs.double().numpy() * tokens.numel()
    assert observed[expected == 0].sum() == 0, "a token of probability 0 was drawn"
    order = np.argsort(-expected, kind="stable")
    observed, expected = observed[order], expected[order]
    common = int((expected >= 5).sum())
    bins_o, bins_e = list(observed[:common]), list(expected[:common])
    if expected[common:].sum() > 0:
        # The tail in bins of its own, by falling probability, so that a cut tail shows.
        cumulative = expected[common:].cumsum()
        bin_of = np.minimum(cumulative // 20, max(0, cumulative[-1] // 20 - 1)).astype(int)
        bins_o += list(np.bincount(bin_of, weights=observed[common:]))
        bins_e += list(np.bincount(bin_of, weights=expected[common:]))
    bins_o, bins_e = np.array(bins_o), np.array(bins_e)
    if len(bins_e) < 2:
        return 1.0
    positive = bins_o > 0
    g = 2 * (bins_o[positive] * np.log(bins_o[positive] / bins_e[positive])).sum()
    return float(stats.chi2.sf(g, len(bins_e) - 1))
