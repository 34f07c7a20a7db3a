"""Put an adapted low-rank run into the form that ships: bfloat16 factors, recipe and curve."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from edlm_engine.checkpoints.adapted import (
    ADAPTER,
    ADAPTER_CONFIG,
    AdaptedPair,
    load_adapted,
    read_config,
    save_adapted,
)
from edlm_engine.checkpoints.files import read_json, write_json
from edlm_engine.checkpoints.weights import read_weights
from edlm_engine.execution.dtype import fast_dtype
from edlm_engine.training.corpus import held_out_windows
from edlm_engine.training.objectives import FINAL_DRAWS, held_out_loss
from edlm_engine.training.run_log import LOG, PLOT
from edlm_engine.training.trainer import RECIPE


def bundle_adapted(
    run: str | Path, out: str | Path, data: Iterable[str | Path], *, windows: int = 256
) -> dict[str, Any]:
    """Write the adapter of a run in bfloat16 with its recipe, log and curve; return the recipe.

    The held-out figures in the recipe are those of the rounded adapter beside its base as they are
    used here (blocks in the fast dtype of the processor, float32 heads), on the run's held-out
    files in `data`. Raises ValueError for a run of full weights.
    """
    run, out = Path(run), Path(out)
    config = read_config(run)
    if config.weights != "low-rank":
        raise ValueError(f"run must be of low-rank weights, got {config.weights} at {run}")
    adapter = read_json(run / ADAPTER_CONFIG)
    save_adapted(out, config, read_weights(run / ADAPTER), adapter=adapter, dtype=torch.bfloat16)
    recipe = read_json(run / RECIPE)
    recipe["held_out"] = _measure(load_adapted(out, dtype=fast_dtype("cpu")), recipe, data, windows)
    write_json(out / RECIPE, recipe)
    for name in (LOG, PLOT):
        shutil.copyfile(run / name, out / f"{name}.tmp")
        (out / f"{name}.tmp").replace(out / name)
    return recipe


def _measure(
    pair: AdaptedPair, recipe: dict[str, Any], data: Iterable[str | Path], count: int
) -> dict[str, Any]:
    windows, characters = held_out_windows(data, recipe["config"], pair.tokenizer, count)
    bound = held_out_loss("adapt", pair.denoiser, windows, draws=FINAL_DRAWS, batch_size=16)
    base = held_out_loss("ar", pair.ar, windows, batch_size=16)
    return {
        "bound, nats per token": round(bound, 4),
        "bound, nats per character": round(bound / characters, 4),
        "base left to right, nats per token": round(base, 4),
        "base left to right, nats per character": round(base / characters, 4),
        "windows": len(windows),
        "draws per window": FINAL_DRAWS,
        "dtype": str(fast_dtype("cpu")),
        "seed": 0,
    }
