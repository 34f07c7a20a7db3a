"""The orders compared: which positions a step reveals, at equal numbers of steps.

python examples/orders.py
"""

from math import log

import edlm_engine as edlm

ORDERS = {
    "ancestral": {},  # exact for the denoiser's diffusion: positions at random times
    "ancestral, remasking": {"remask": 0.1},  # revealed tokens may be hidden again
    "leftmost": {"order": "leftmost"},
    "leftmost, blocks of 8": {"order": "leftmost", "block_length": 8},
    "confidence": {"order": "confidence"},  # the surest draws first
    "confidence, blocks of 8": {"order": "confidence", "block_length": 8},
    "margin": {"order": "margin"},
    "entropy": {"order": "entropy"},
    "threshold": {"order": "threshold", "threshold": 0.5},  # as many as are sure enough
    "entropy_bounded": {"order": "entropy_bounded", "entropy_bound": 1.0},
    # The AR model's own law, from drafts of the denoiser: as many steps as that takes.
    "resolved, speculative": {"order": "resolved", "correction": "speculative"},
}


def main(batch_size: int = 8, steps: int = 16, candidates: int = 1, length: int = 48):
    engine = edlm.Engine.from_pretrained()
    rows = {}
    print(f"{'order':<26}{'nats a token':>14}{'entropy':>10}{'evaluations':>13}")
    for name, options in ORDERS.items():
        config = {"steps": steps, "num_candidates": candidates, "length": length, **options}
        out = engine.generate(batch_size, config=config, seed=0)
        # Low nats with low entropy is repetition, not quality: look at both.
        nats = log(edlm.metrics.generative_perplexity(out.sequences, engine.energy.model))
        entropy = edlm.metrics.token_entropy(out.sequences).mean().item()
        rows[name] = nats, entropy, out.nfe.double().mean().item()
        print(f"{name:<26}{nats:>14.2f}{entropy:>10.2f}{rows[name][2]:>13.1f}")
    return rows


if __name__ == "__main__":
    main()
