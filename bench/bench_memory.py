"""Memory of an energy step of paper size with K = 16, beyond the models and their activations."""

import multiprocessing

import torch

from bench.models import engine_of
from bench.phases import peak_memory
from edlm_engine import Engine, GenerationConfig


def activations(engine: Engine, device: torch.device) -> None:
    """Both backbones alone, the AR model on as many sequences as one of its micro-batches."""
    model, length = engine.energy.model, engine.denoiser.length
    rows = max(1, engine.energy.max_tokens // length)
    with torch.inference_mode():
        model.hidden(torch.zeros(rows, length, dtype=torch.int64, device=device))
        tokens = torch.zeros(1, length, dtype=torch.int64, device=device)
        engine.denoiser.hidden(tokens, torch.zeros(1, device=device))


def energy_step(engine: Engine, device: torch.device) -> None:
    engine.generate(config=GenerationConfig(steps=1, num_candidates=16))


def peak_of(work, dtype: torch.dtype, device: torch.device) -> int:
    engine = engine_of("paper", dtype, device)
    with peak_memory(device) as peak:
        work(engine, device)
    return peak[0]


def peak_apart(work, dtype: torch.dtype, device: torch.device) -> int:
    """On the CPU in a process of its own, whose heap holds nothing to use again."""
    if device.type == "cuda":
        return peak_of(work, dtype, device)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, (work, dtype, device))


def bench_energy_step_memory(measure, benchmark, device, dtype):
    """One step that uses the energy, against what both models' backbones take alone."""
    alone = peak_apart(activations, dtype, device)
    step = measure(
        lambda: peak_apart(energy_step, dtype, device),
        "energy step, with making the models",
        group="paper size, one energy step, K=16",
        rounds=1,
        warmup=0,
    )
    benchmark.extra_info |= {"peak_bytes": step, "activation_bytes": alone, "dtype": str(dtype)}
