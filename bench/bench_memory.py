"""Memory of an energy step of paper size with K = 16, beyond the models and their activations."""

import multiprocessing

import torch

from bench.models import pair
from bench.phases import peak_memory
from edlm_engine import ARResidualEnergy, Engine, GenerationConfig


def activations(engine: Engine) -> None:
    """Both backbones alone, the AR model on as many sequences as one of its micro-batches."""
    model, length = engine.energy.model, engine.denoiser.length
    rows = max(1, engine.energy.max_tokens // length)
    with torch.inference_mode():
        model.hidden(torch.zeros(rows, length, dtype=torch.int64))
        engine.denoiser.hidden(torch.zeros(1, length, dtype=torch.int64), torch.zeros(1))


def energy_step(engine: Engine) -> None:
    engine.generate(config=GenerationConfig(steps=1, num_candidates=16))


def peak_of(work) -> int:
    """Peak growth of resident bytes; in a process of its own, whose heap holds nothing to reuse."""
    denoiser, ar = pair("paper", torch.bfloat16)
    engine = Engine(denoiser, ARResidualEnergy(ar))
    with peak_memory() as peak:
        work(engine)
    return peak[0]


def bench_energy_step_memory(measure, benchmark):
    """One step that uses the energy, against what both models' backbones take alone."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        alone = pool.apply(peak_of, (activations,))
        step = measure(
            lambda: pool.apply(peak_of, (energy_step,)),
            "energy step, with making the models",
            group="paper size, one energy step, K=16",
            rounds=1,
            warmup=0,
        )
    benchmark.extra_info |= {"peak_bytes": step, "activation_bytes": alone}
