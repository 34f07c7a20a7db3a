"""Text from nothing, with the energy and without: what the correction changes, and what it tells.

python examples/unconditional.py
"""

from dataclasses import replace
from math import log

import edlm_engine as edlm


def main(batch_size: int = 2, steps: int = 64, candidates: int = 8, length: int = 64):
    engine = edlm.Engine.from_pretrained()  # the small bundled pair of denoiser and AR model
    config = edlm.GenerationConfig(steps=steps, num_candidates=candidates, length=length)

    # One candidate is plain masked diffusion: the same models, seed and steps, no energy.
    plain = engine.generate(batch_size, config=replace(config, num_candidates=1), seed=0)
    corrected = engine.generate(batch_size, config=config, seed=0)

    for name, out in (("without the energy", plain), ("with the energy", corrected)):
        # -log p_AR of the whole text, per token: what the energy is about.
        nats = log(edlm.metrics.generative_perplexity(out.sequences, engine.energy.model))
        print(f"\n{name}: {nats:.2f} nats a token under the AR model")
        print(f"  {out.texts[0]!r}")
        print(f"  denoiser evaluations {out.nfe.tolist()}")
    # How many of the K candidates had a say, by energy step; near 1 one of them decided alone.
    ess = ", ".join(f"{value:.1f}" for value in corrected.ess[0, :8])
    print(f"\neffective sample size of the first steps: {ess} of {candidates}")
    return plain, corrected


if __name__ == "__main__":
    main()
