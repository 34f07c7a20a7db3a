"""A denoiser and an energy of your own: two functions.

The denoiser knows which tokens are frequent and nothing of their neighbours. The energy knows that
a token is followed by the next one, as on a dial. Neither knows the other.

    python examples/own_models.py
"""

import torch

import edlm_engine as edlm

VOCAB, LENGTH = 6, 10
MASK = VOCAB  # one more row of the logits; the engine never draws it
FREQUENCY = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.2, 0.1, 1e-9])


def denoise(xt, sigma):
    """Noisy tokens [B, L] and total noise [B] -> logits [B, L, V + 1] of the clean tokens."""
    return FREQUENCY.log().expand(*xt.shape, VOCAB + 1)


def follows(x0, xt, log_q, t):
    """Complete candidates [B, K, L] -> energies [B, K], lower being likelier.

    Without `log_q` this tilts the denoiser, p_theta(x0 | xt) exp(-E). With `+ log_q` the denoiser
    would cancel and exp(-E) alone be the target, as for the AR energy.
    """
    steps = (x0[..., 1:] - x0[..., :-1]) % VOCAB == 1
    return -3.0 * steps.sum(dim=-1).float()


def main(batch_size: int = 200, candidates: int = 16):
    denoiser = edlm.CallableDenoiser(denoise, mask_id=MASK, vocab_size=VOCAB + 1, length=LENGTH)
    config = edlm.GenerationConfig(steps=None, num_candidates=candidates)
    shares = {}
    for name, energy in (("denoiser alone", None), ("with the energy", follows)):
        out = edlm.Engine(denoiser, energy).generate(batch_size, config=config, seed=0)
        steps = (out.sequences[:, 1:] - out.sequences[:, :-1]) % VOCAB == 1
        shares[name] = steps.double().mean().item()
        print(f"{name}: {out.sequences[0].tolist()}, {shares[name]:.0%} follow their neighbour")
    return shares


if __name__ == "__main__":
    main()
