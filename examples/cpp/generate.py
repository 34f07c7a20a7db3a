"""The generation of generate.cpp by the Python engine: it prints the same lines, bit for bit.

python examples/cpp/generate.py [SEED] [STEPS]
"""

import sys

import torch

import edlm_engine as edlm

BATCH, LENGTH, VOCAB, MASK = 3, 24, 17, 16
PLACES, TOKENS = torch.arange(LENGTH)[:, None], torch.arange(VOCAB)


def toy_hash(before, after, place, token):
    """As in toy.h: a number in [0, 256)."""
    return (7919 * before + 104729 * after + 1299709 * place + 15485863 * token) % 4093 % 256


def denoise(xt, sigma):
    """Tokens [B, L] -> logits [B, L, V] by the tokens beside each."""
    padded = torch.nn.functional.pad(xt, (1, 1), value=MASK)
    return (toy_hash(padded[:, :-2, None], padded[:, 2:, None], PLACES, TOKENS) - 128) / 64


def energy(x0, xt, log_q, t):
    """Complete candidates [B, K, L] -> energies [B, K]: neighbours get along or not."""
    return toy_hash(x0[..., :-1], x0[..., 1:], 0, 0).sum(dim=-1) / 256


def main(seed: int = 0, steps: int = 6) -> list[str]:
    denoiser = edlm.CallableDenoiser(denoise, mask_id=MASK, vocab_size=VOCAB, length=LENGTH)
    config = edlm.GenerationConfig(steps=steps or None, num_candidates=4, window=0.7)
    canvas = torch.full((BATCH, LENGTH), MASK)
    canvas[0, 2] = 5  # a token that is known
    out = edlm.Engine(denoiser, energy).generate(BATCH, config=config, seed=seed, canvas=canvas)
    lines = []
    for b in range(BATCH):
        tokens = " ".join(map(str, out.sequences[b].tolist()))
        pairs = torch.stack([out.ess[b], out.log_z[b]], dim=1)
        shown = [x for x in pairs.flatten().tolist() if x == x]  # NaN: no such energy step
        lines.append(
            " | ".join([tokens, str(int(out.nfe[b])), " ".join(f"{x:.9g}" for x in shown)])
        )
    return lines


if __name__ == "__main__":
    print(*main(*map(int, sys.argv[1:])), sep="\n")
