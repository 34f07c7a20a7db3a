"""Memory of an energy step of paper size with K = 16, beyond the models and their activations."""

import torch

from bench.models import pair
from bench.phases import peak_memory
from edlm_engine import ARResidualEnergy, Engine, GenerationConfig

STEP = GenerationConfig(steps=1, num_candidates=16)


def bench_energy_step_memory(measure, benchmark):
    """One step that uses the energy, at the peak of what both models' backbones take alone."""
    denoiser, ar = pair("paper", torch.bfloat16)
    energy = ARResidualEnergy(ar)
    engine = Engine(denoiser, energy)
    rows = max(1, energy.max_tokens // denoiser.length)
    with torch.inference_mode():
        engine.generate(config=GenerationConfig(steps=1, num_candidates=1))  # pages in the code
        with peak_memory() as activations:
            ar.hidden(torch.zeros(rows, denoiser.length, dtype=torch.int64))
            denoiser.hidden(torch.zeros(1, denoiser.length, dtype=torch.int64), torch.zeros(1))
    with peak_memory() as step:
        measure(
            lambda: engine.generate(config=STEP),
            "energy step",
            group="paper size, one energy step, K=16",
            rounds=1,
            warmup=0,
        )
    benchmark.extra_info |= {"peak_bytes": step[0], "activation_bytes": activations[0]}
